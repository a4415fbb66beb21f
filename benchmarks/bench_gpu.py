"""The figures of a GPU (BENCHMARKS.md, bench-gpu): extraction at full size and stage 2 from cached targets, with random weights.

Extraction: photos on disk to committed int8 shards through one worker of this process, the teacher in bf16 with a batch size that it finds,
against a bare loop of the same loaded teacher over pixels in memory, rounds interleaved. `/peak` is images a second times the teacher's
operations an image (counted by torch over a forward on the meta device, two a multiplication) over the rate of a large bf16 matrix product
that is measured in the same run. Pixels, resized by the host or the device: gpu_pixels.py. Training: gpu_training.py. One process, one GPU;
minutes on a data-centre GPU, most of them for making random weights. `--tiny` runs every line with small shapes, also on a CPU, and its
figures mean nothing.

    python -m benchmarks.bench_gpu [--device cuda] [--teachers dinov3-h+ pecore-g] [--tiny]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.jobs.extraction.measure_statistics import Normalisation
from eupe_pipeline.jobs.extraction.pool import InProcess
from eupe_pipeline.jobs.extraction.summary import ShardReport
from eupe_pipeline.jobs.extraction.work_orders import WorkOrder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.input_size import size_hw
from eupe_pipeline.storage.views.renderers import fast
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch.utils.flop_counter import FlopCounterMode

from .bench_extract import make_photos
from .figures import interleave, report
from .gpu_pixels import PixelsSize, bench_pixels
from .gpu_training import TrainingSize, bench_training


@dataclass(frozen=True)
class Size:
    """How much is extracted."""

    teachers: tuple[str, ...] = ("dinov3-h+", "pecore-g")
    shards: int = 4  # of a round
    shard_images: int = 128
    photo_hw: tuple[int, int] = (375, 500)
    matrix: int = 8192
    rounds: int = 5
    batch_size: int | None = None
    teacher_px: int | None = None
    render_threads: int = 8
    training: TrainingSize = field(default_factory=TrainingSize)
    pixels: PixelsSize = field(default_factory=PixelsSize)


TINY = Size(("timm:test_vit.r160_in1k",), 1, 4, (40, 48), 64, 2, 4, 32, 1, TrainingSize.tiny(), PixelsSize.tiny())


def synchronise(device: str) -> None:
    """Wait until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_peak(device: str, side: int, rounds: int) -> float:
    """Return operations a second of a large bf16 matrix product, the best of several rounds."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 2):
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        synchronise(device)
        best = min(best, (time.perf_counter() - started) / 10)
    return 2 * side**3 / best


def operations(spec: TeacherSpec) -> float:
    """Count the operations of one image's forward, without memory for the weights."""
    with torch.device("meta"):
        teacher = load_teacher(spec, "meta")
        side = spec.preprocessing.size_px
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher.encoder(torch.empty(1, 3, *size_hw(side)))
    return float(counter.get_total_flops())


class Extraction:
    """One worker with its loaded teacher, and shards that nobody has done yet."""

    def __init__(self, folder: Path, spec: TeacherSpec, size: Size, device: str) -> None:
        self.size = size
        store = FeatureStore.create(str(folder / "store"))
        dataset = build_index(store.objects, str(folder / "photos"), "photos")
        views = ViewSet.create(store.objects, dataset, ViewSpec(), size.shard_images, fast())
        order = WorkOrder(
            store.url, views.key, (spec,), device, torch.get_num_threads(), size.batch_size, render_threads=size.render_threads
        )
        self.crew = InProcess(order)
        normalisation = Normalisation(store, views, {spec.name: spec}, 2)
        normalisation.measure(self.crew, lambda event: None)
        known = normalisation.known[spec.name]
        layout = FeatureLayout(spec.cls_dim, spec.patch_dim, spec.grid, "int8")
        identity = features_identity(spec.identity(), views, known, normalisation.sampling[spec.name], layout)
        self.key = FeatureReader.create(store.objects, "teacher", views, identity, known).key
        self.name, self.done, self.reports = spec.name, 0, list[ShardReport]()

    @property
    def teacher(self) -> Teacher:
        """The worker's own."""
        return self.crew._worker.teachers[self.name].teacher

    @property
    def batch(self) -> int:
        """Views in one forward."""
        return self.crew._worker.teachers[self.name].views

    def next_shards(self, number: int) -> None:
        """Extract a round's shards, from photos to commits."""
        mine = range(self.done, self.done + self.size.shards)
        self.done += self.size.shards
        self.reports += [report for _, report in self.crew.run([("do_shard", (shard, {self.name: self.key})) for shard in mine])]


def bare(teacher: Teacher, batch: int, views: int, device: str) -> Callable[[int], None]:
    """Run the loaded teacher over pixels in memory, results dropped."""
    pixels = torch.from_numpy(canary_images(batch, teacher.spec.preprocessing.size_px).copy())
    pixels = pixels.pin_memory() if device == "cuda" else pixels

    def run(number: int) -> None:
        for _ in range(views // batch):
            teacher(pixels)
        synchronise(device)

    return run


def bench_extraction(folder: Path, name: str, size: Size, device: str, peak: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of one teacher, and the timings they were made of."""
    spec = resolve_teacher(name, size_px=size.teacher_px, precision="bf16", allow_random_weights=True)
    views = size.shards * size.shard_images
    make_photos(folder / "photos", views * (size.rounds + 1), size.photo_hw)  # a round of warm-up; no photo twice
    extraction = Extraction(folder, spec, size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loop = bare(extraction.teacher, min(extraction.batch, views), views, device)
    seconds = interleave({"extract": extraction.next_shards, "bare": loop}, size.rounds)
    rate, bare_rate = (views / float(np.median(seconds[which])) for which in ("extract", "bare"))
    label = name.replace("-", "").replace("+", "").replace("timm:", "").split(".")[0]
    count = operations(spec)
    figures = {
        f"gpu.extract_{label}.images_per_s": rate,
        f"gpu.extract_{label}/peak": rate * count / peak,
        f"gpu.extract_{label}/bare_forward": rate / bare_rate,
    }
    if device == "cuda":
        figures[f"gpu.extract_{label}.peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    spent = {
        phase: sum(one.seconds.get(phase, 0.0) for one in extraction.reports) for phase in ("decode", "wait", "forward", "encode", "write")
    }
    return figures, {"seconds": seconds, "worker_seconds": spent, "batch_size": extraction.batch, "operations_an_image": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--teachers", nargs="+", default=None, help="Default: dinov3-h+ pecore-g.")
    parser.add_argument("--tiny", action="store_true", help="Small shapes, to see that every line runs.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("bench-gpu needs a CUDA device; `--device cpu --tiny` only shows that the script runs")
    size = TINY if options.tiny else Size()
    peak = matrix_peak(options.device, size.matrix, size.rounds)
    results: dict[str, float] = {"gpu.bf16_peak_tflops": peak / 1e12}
    details: dict[str, Any] = {"device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu", "tiny": options.tiny}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(options.teachers or size.teachers):
            figures, details[name] = bench_extraction(Path(temporary) / str(number), name, size, options.device, peak)
            results |= figures
        figures, details["pixels"] = bench_pixels(Path(temporary) / "pixels", size.pixels, options.device)
        results |= figures
        figures, details["training"] = bench_training(Path(temporary) / "training", size.training, options.device)
    ideal = figures.pop("ideal")
    targets = {"gpu.extract_dinov3h/peak": (">=", 0.6), "gpu.train_vitt.wait_share": ("<=", 0.03)}
    report(results | figures, {**targets, "gpu.train_vitt.cached/live": (">=", 0.95 * ideal)}, {**details, "ideal": ideal}, options.out)


if __name__ == "__main__":
    main()
