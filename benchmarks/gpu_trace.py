"""A trace of the steady training step on a device: operations by time, peak memory, and how often the host waits for the device.

Stage 2 from cached int8 targets in the shape of bench_gpu.py. Host waits are torch's own count (`torch.cuda.set_sync_debug_mode`) over
streamed steps of which none logs; a CPU has none, and no such figure. The Chrome trace opens in Perfetto.

    python -m benchmarks.gpu_trace [--device cuda] [--tiny] [--out docs/results]
"""

import argparse
import contextlib
import gzip
import itertools
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.student.data.targets import CachedTargets
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.trainer import Trainer
from torch.profiler import ProfilerActivity, profile

from .figures import report
from .gpu_training import TrainingSize, proxy_spec, trainer_of
from .training_store import make_store

_WARM_UP, _WATCHED, _TRACED = 3, 20, 4
_MOST_ROWS = 15


def cached_trainer(folder: Path, size: TrainingSize, device: str) -> Trainer:
    """Return a trainer on random codes in the proxy's shape."""
    spec = proxy_spec(size)
    reader = make_store(folder, size.images, spec.grid, spec.patch_dim)
    run = RunConfig(10**6, size.batch, reader_threads=size.threads)
    recipe = replace(TrainRecipe(device=device), student=StudentConfig(size.student, {}, (size.size_px,)), run=run)
    return trainer_of(recipe, CachedTargets({"bench": reader}), reader, folder / "run", device)


def take(trainer: Trainer, batches: Iterator[Any], count: int) -> None:
    """Take some steps."""
    for batch in itertools.islice(batches, count):
        trainer.learners[0].steps_done = batch.plan.step
        trainer.step(batch)


def host_waits(trainer: Trainer, batches: Iterator[Any], count: int) -> float:
    """Return how often a step makes the host wait, by torch's own count."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take(trainer, batches, count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in seen) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    on_cuda, figures = options.device == "cuda", dict[str, float]()
    size = TrainingSize.tiny() if options.tiny else TrainingSize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with tempfile.TemporaryDirectory() as folder:
        trainer = cached_trainer(Path(folder), size, options.device)
        with contextlib.closing(trainer.stream.batches(0, _WARM_UP + _WATCHED + _TRACED)) as batches:  # type: ignore[type-var]
            take(trainer, batches, _WARM_UP)
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
                figures["gpu.syncs_per_step"] = host_waits(trainer, batches, _WATCHED)
                figures["gpu.train_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            with profile(activities=activities, acc_events=True) as traced:
                take(trainer, batches, _TRACED)
        trainer.learners[0].read()
    by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    rows = sorted(traced.key_averages(), key=lambda row: -float(getattr(row, by)))
    figures["gpu.traced_steps"] = _TRACED
    operations = [{"name": row.key, "calls": row.count, "us": float(getattr(row, by))} for row in rows[:_MOST_ROWS]]
    options.out.mkdir(parents=True, exist_ok=True)
    report(figures, {"gpu.syncs_per_step": ("<=", 0.0)}, {"tiny": options.tiny, "operations": operations}, options.out / "gpu-trace.json")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        traced.export_chrome_trace(str(plain))
        events = json.loads(plain.read_text())
        (options.out / "gpu-trace.chrome.json.gz").write_bytes(gzip.compress(json.dumps(events).encode(), mtime=0))


if __name__ == "__main__":
    main()
