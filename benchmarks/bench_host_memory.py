"""What keeping freed memory saves on a CPU: processor time, page faults and peak memory with glibc's own limits and with ours, in turns.

Each contestant is a process of its own, because limits hold for a process; glibc's stay where the environment sets any of its malloc's, here
a harmless one. `step_…` is a training step of the demonstration's proxy (32 photos of 64 px, two teachers) and of ViT-T (16 of 256 px, a
teacher of 1,280 channels), `forward_…` a pass of a ViT-B over 32 photos in fp32. Two threads.

    python -m benchmarks.bench_host_memory [--rounds 5]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.pipeline.demo.demo_recipe import load_demo
from eupe_pipeline.student.model.student import TargetSpec
from eupe_pipeline.student.training.learner import Learner
from eupe_pipeline.student.training.run_folder import RunFolder
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.runtime.devices import Choice, autocast, choose_precision
from eupe_pipeline.teachers.runtime.host_memory import keep_freed_memory

from .figures import report

CPU = Choice("cpu", "benchmark")
GLIBC = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
"""Its default, named, which changes nothing but that ours give way; naming a limit would stop glibc from adapting it."""
REPEATS, WARM_UP = 8, 4
_OWN_FACTS = "--one"


def stepping(stage: int, size_px: int, batch: int, specs: dict[str, TargetSpec]) -> Callable[[int], object]:
    """Return one optimiser step of a student of the demonstration's recipe on random pixels and targets."""
    recipe = load_demo().stages[stage].recipe
    recipe = replace(recipe, student=replace(recipe.student, sizes_px=(size_px,)), run=replace(recipe.run, batch_size=batch))
    student, folder = initial_student(recipe, specs), RunFolder(Path(tempfile.mkdtemp(prefix="bench-host-memory-")))
    learner = Learner(recipe, student, folder, device=CPU, precision=choose_precision("auto", "cpu"), statistics={})
    pixels_BHWC = torch.randint(0, 256, (batch, size_px, size_px, 3), dtype=torch.uint8)
    targets = {
        name: Tokens(torch.randn(batch, spec.cls_dim or 1), torch.randn(batch, *spec.grid, spec.patch_dim)) for name, spec in specs.items()
    }

    def step(number: int) -> None:
        learner.forward_backward(number, pixels_BHWC, targets, 1.0, last=True)
        learner.optimizer_step(number, lambda: "")

    return step


def forward() -> Callable[[int], object]:
    """Return a forward pass of a ViT-B in fp32."""
    keep_freed_memory("cpu")
    encoder, pixels_BCHW = build_encoder({"name": "eupe_vitb16"}).eval(), torch.randn(32, 3, 128, 128)

    def run(number: int) -> object:
        with torch.inference_mode(), autocast("cpu", "fp32"):
            return encoder(pixels_BCHW)

    return run


WORK: dict[str, Callable[[], Callable[[int], object]]] = {
    "step_proxy_64px": lambda: stepping(1, 64, 32, {"a": TargetSpec(1280, 1280, (4, 4)), "b": TargetSpec(2048, 2048, (3, 3))}),
    "step_vitt_256px": lambda: stepping(2, 256, 16, {"a": TargetSpec(1280, 1280, (16, 16))}),
    "forward_vitb_128px": forward,
}


def measure_here(name: str) -> dict[str, float]:
    """Return processor milliseconds (median), page faults and the peak memory in MB of some work in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    run = WORK[name]()
    for number in range(WARM_UP):
        run(number)
    faults, milliseconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for number in range(WARM_UP, WARM_UP + REPEATS):
        started = time.process_time()
        run(number)
        milliseconds.append((time.process_time() - started) * 1e3)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_ms": float(np.median(milliseconds)), "faults": (used.ru_minflt - faults) / REPEATS, "peak_mb": used.ru_maxrss / 1024}


def measure_in_turns(name: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return each round's facts of both contestants, each in a fresh process."""
    found: dict[str, list[dict[str, float]]] = {"glibc": [], "kept": []}
    command = [sys.executable, "-m", "benchmarks.bench_host_memory", _OWN_FACTS, name]
    for _ in range(rounds):
        for way, environment in (("glibc", GLIBC), ("kept", {})):
            done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-host-memory.json"))
    parser.add_argument(_OWN_FACTS, choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one)))
        return
    results: dict[str, float] = {}
    for name in WORK:
        found = measure_in_turns(name, options.rounds)
        ratios = [kept["cpu_ms"] / glibc["cpu_ms"] for kept, glibc in zip(found["kept"], found["glibc"], strict=True)]
        results[f"memory.{name}.cpu/glibc"] = float(np.median(ratios))
        for fact in ("cpu_ms", "faults", "peak_mb"):
            results |= {f"memory.{name}.{fact}_{way}": float(np.median([row[fact] for row in rows])) for way, rows in found.items()}
    targets = {f"memory.{name}.cpu/glibc": ("<=", 1.0) for name in WORK}
    report(results, targets, {"command": f"python -m benchmarks.bench_host_memory --rounds {options.rounds}"}, options.out)


if __name__ == "__main__":
    main()
