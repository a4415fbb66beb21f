"""Latency of one image: batch 1, one size, a stated number of threads, in every runtime that an export folder holds.

Warm-up calls first (compilers, allocators, caches), then each call is timed alone; median and 95th percentile are of those. Time does not
depend on the weights' values, so eager and torch.compile run the architecture with fresh ones, and the graphs the exported ones. FLOPs
count multiply and add as two, over convolutions, linear layers and attention. A shared machine shows in p95, and in a
median above the processor time: one thread on a machine of its own has them equal.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...storage.core.errors import BadInput, CacheMismatch, unknown_name
from ...storage.core.events import OnEvent, ignore_event
from ...storage.views.input_size import SizePx, as_size, size_hw
from ...teachers.encoders.build import build_encoder
from ...teachers.encoders.encoder import Encoder
from ..model.student import count_parameters
from .formats import FORMATS, choices_of, row_of
from .runtimes import CannotRunHere, Runner, compiled_runner, eager_runner

PAPER_IPHONE_MS = {
    "eupe_vitt16": 6.8, "eupe_vits16": 17.1, "eupe_vitb16": 55.2,
    "eupe_convnext_tiny": 22.4, "eupe_convnext_small": 38.5, "eupe_convnext_base": 59.3,
}  # fmt: skip
"""The paper's latency on an iPhone at 256 px (ExecuTorch); another machine than yours."""


@dataclass(frozen=True)
class LatencyOptions:
    """Which export is measured, and how."""

    folder: Path
    """Of an export: one folder a format."""
    threads: int = 1
    """Threads of every runtime."""
    warmup: int = 10
    """Calls before the first that counts."""
    calls: int = 50
    """Calls that count."""
    runtimes: tuple[str, ...] = ()
    """Which of `known_runtimes`; () for all that the folder holds."""

    def __post_init__(self) -> None:
        if min(self.threads, self.calls) < 1 or self.warmup < 0:
            raise BadInput(f"threads and calls are at least 1 and warmup at least 0, got {self}")
        for name in self.runtimes:
            if name not in (known := known_runtimes()):
                raise unknown_name("runtime", name, known)


def latency(options: LatencyOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Measure an export; return parameters, GFLOPs and {runtime: {median_ms, p95_ms, cpu_ms}}. Raises BadInput when it is not one."""
    folder = options.folder
    record = _read_export(folder)
    size_px = as_size(record["preprocessing"]["size_px"])
    height, width = size_hw(size_px)
    encoder = build_encoder(record["architecture"]).eval()
    pixels_BCHW = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    table: dict[str, Any] = {}
    known = known_runtimes()
    with _threads(options.threads):
        for number, name in enumerate(chosen := options.runtimes or tuple(known)):
            try:
                run = known[name](encoder, folder, options.threads)
            except CannotRunHere as error:  # an export holds files for other machines, too
                if options.runtimes:
                    raise
                on_event({"event": "note", "text": f"{name} is left out: {error}"})
                continue
            if run is None and options.runtimes:
                raise BadInput(f"{folder} holds nothing for the runtime {name}; export that format first")
            if run is not None:
                on_event({"event": "progress", "stage": f"latency {name}", "done": number, "total": len(chosen), "unit": "runtimes"})
                table[name] = measure(run, pixels_BCHW, options)
    return {
        "student": record["student"], "input": f"1x3x{height}x{width}", "threads": options.threads, "warmup": options.warmup,
        "calls": options.calls, "parameters": count_parameters(encoder), "gflops": count_gflops(encoder, size_px),
        "paper_iphone_ms": PAPER_IPHONE_MS.get(record["student"]) if size_px == 256 else None, "columns": "median_ms, p95_ms, cpu_ms",
        "runtimes": table,
    }  # fmt: skip


def measure(run: Runner, pixels_BCHW: torch.Tensor, options: LatencyOptions) -> dict[str, float]:
    """Return median and 95th percentile of single calls, and the median of the processor time that they took, in milliseconds."""
    for _ in range(options.warmup):
        run(pixels_BCHW)
    took_ms, cpu_ms = [], []
    for _ in range(options.calls):
        began, cpu_began = time.perf_counter(), time.process_time()
        run(pixels_BCHW)
        cpu_ms.append((time.process_time() - cpu_began) * 1e3)
        took_ms.append((time.perf_counter() - began) * 1e3)
    p95_ms = sorted(took_ms)[max(0, -(-95 * len(took_ms) // 100) - 1)]
    return {"median_ms": statistics.median(took_ms), "p95_ms": p95_ms, "cpu_ms": statistics.median(cpu_ms)}


def count_gflops(encoder: Encoder, size_px: SizePx) -> float:
    """Return the floating-point operations of one image in 10⁹, an addition and a multiplication counting as two."""
    pixels_BCHW = torch.zeros(1, 3, *size_hw(size_px))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:  # MATH: seen as matrix products
        encoder(pixels_BCHW)
    return float(counter.get_total_flops()) / 1e9


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_export(folder: Path) -> dict[str, Any]:
    """Return what all formats of a folder have in common; raises BadInput without any, CacheMismatch for several students in one."""
    try:
        records = [dict(json.loads(path.read_text())) for path in sorted(folder.glob("*/export.json"))]
        students = [{key: record[key] for key in ("student", "architecture", "preprocessing", "weights_sha256")} for record in records]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"an export.json in {folder} is not one of ours: {error!r}") from error
    if not students:
        raise BadInput(f"{folder} is not the folder of an export: no */export.json; run `eupe-pipeline export RUN --out {folder} …` first")
    if any(student != students[0] for student in students):
        raise CacheMismatch(f"the formats in {folder} are of different students or sizes; export them together")
    return students[0]


def _file_runner(open_runner: Callable[[Path, int], Runner], where: str) -> Callable[[Encoder, Path, int], Runner | None]:
    """Return a runner of one exported file; None from it when the folder does not hold the file."""

    def opened(encoder: Encoder, folder: Path, threads: int) -> Runner | None:
        path = folder / where
        return open_runner(path, threads) if path.exists() else None

    return opened


Opened = Callable[[Encoder, Path, int], Runner | None]
RUNTIMES: dict[str, Opened] = {
    "eager": lambda encoder, folder, threads: eager_runner(encoder),
    "torch.compile": lambda encoder, folder, threads: compiled_runner(encoder),
}
"""The ways to run a student that need no export."""


def known_runtimes() -> dict[str, Opened]:
    """Return every way to run a student, those of the export formats among them; each gives None when the folder does not hold its file."""
    runtimes = dict(RUNTIMES)
    for name in FORMATS:
        with suppress(BadInput):  # a broken plug-in hinders no other format
            for choice in choices_of(name):
                written = row_of(name, choice).runtimes.items()
                runtimes |= {runtime: _file_runner(runner, f"{choice.folder(name)}/{file}") for runtime, (file, runner) in written}
    return runtimes
