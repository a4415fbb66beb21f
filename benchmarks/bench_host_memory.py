"""What keeping freed memory saves on a CPU, against glibc's own limits: processor time and page faults of two processes in turns.

Both processes do the same work, a few repeats each by turns, so that a busy machine is busy for both; glibc's own limits stay in the one
whose environment sets anything of its malloc, here a harmless value. `step_…` is a training step of the demonstration's proxy (32 photos of
64 px, two teachers) and of ViT-T (16 of 256 px, a teacher of 1,280 channels), `forward_…` a pass of a ViT-B over 32 photos of 128 px in
fp32. Two threads; the ratio is the median of the turns' ratios.

    python -m benchmarks.bench_host_memory [--rounds 9]
"""

import argparse
import contextlib
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
ENVIRONMENTS = {"glibc": {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, "kept": {}}
"""Of the two processes; the value is glibc's default, and naming a limit instead would stop glibc from adapting it."""
Work = Callable[[int], object]


def stepping(stage: int, size_px: int, batch: int, specs: dict[str, TargetSpec]) -> Work:
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


def forward() -> Work:
    """Return a forward pass of a ViT-B in fp32."""
    keep_freed_memory("cpu")
    encoder, pixels_BCHW = build_encoder({"name": "eupe_vitb16"}).eval(), torch.randn(32, 3, 128, 128)

    def run(number: int) -> object:
        with torch.inference_mode(), autocast("cpu", "fp32"):
            return encoder(pixels_BCHW)

    return run


WORK: dict[str, tuple[int, Callable[[], Work]]] = {
    "step_proxy_64px": (6, lambda: stepping(1, 64, 32, {"a": TargetSpec(1280, 1280, (4, 4)), "b": TargetSpec(2048, 2048, (3, 3))})),
    "step_vitt_256px": (2, lambda: stepping(2, 256, 16, {"a": TargetSpec(1280, 1280, (16, 16))})),
    "forward_vitb_128px": (2, forward),
}
"""By name: how often a turn does it, and what makes it."""


def serve(name: str) -> None:
    """Do the work a few times for each line that comes in, and answer with processor milliseconds and page faults of one."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    repeats, make = WORK[name]
    work = make()
    for turn, _ in enumerate(sys.stdin):
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        for repeat in range(repeats):
            work(turn * repeats + repeat)
        cpu_ms = (time.process_time() - started) / repeats * 1e3
        print(json.dumps({"cpu_ms": cpu_ms, "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / repeats}), flush=True)


def measure(name: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return by contestant and fact (`cpu_ms`, `faults`) the figures of one piece of work, a round each, without the first two."""
    found: dict[str, dict[str, list[float]]] = {way: {"cpu_ms": [], "faults": []} for way in ENVIRONMENTS}
    with contextlib.ExitStack() as stack:
        served = {
            way: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.bench_host_memory", "--serve", name],
                    env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                )
            )
            for way, environment in ENVIRONMENTS.items()
        }  # fmt: skip
        for number in range(-2, rounds):
            for way, process in served.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                facts = json.loads(process.stdout.readline())
                for fact, row in found[way].items():
                    if number >= 0:
                        row.append(facts[fact])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-host-memory.json"))
    parser.add_argument("--serve", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    results: dict[str, float] = {}
    for name in WORK:
        found = measure(name, options.rounds)
        ratios = np.array(found["kept"]["cpu_ms"]) / np.array(found["glibc"]["cpu_ms"])
        results[f"memory.{name}.cpu/glibc"] = float(np.median(ratios))
        results |= {f"memory.{name}.{fact}_{way}": float(np.median(row)) for way, facts in found.items() for fact, row in facts.items()}
    targets = {f"memory.{name}.cpu/glibc": ("<=", 1.0) for name in WORK}
    report(results, targets, {"command": f"python -m benchmarks.bench_host_memory --rounds {options.rounds}"}, options.out)


if __name__ == "__main__":
    main()
