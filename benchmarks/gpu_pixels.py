"""Views a second on their way to a device, resized by the host or there (`--resize`): a part of bench_gpu.py.

`pixels_host` and `pixels_device` are whole streams from photos on disk to uint8 pixels on the device, by equally many threads; both give
the same bytes, which is compared first. `pixels_nvjpeg` has the device decode as well (`--renderer nvjpeg`), where it can. `resize` is the
device's part alone, over a batch that was cut before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.core.choices import RESIZE_ON, ResizeOn
from eupe_pipeline.storage.images import nvjpeg
from eupe_pipeline.storage.views.renderers import on_nvjpeg
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.stream import Batch, Stream
from eupe_pipeline.student.data.targets import STUDENT, Rendering

from .bench_extract import make_photos
from .figures import interleave
from .pixels_alone import NoTargets, photo_views


@dataclass(frozen=True)
class PixelsSize:
    """How many photos, of what size, become views of what size."""

    photos: int = 1024
    photo_hw: tuple[int, int] = (375, 500)
    px: int = 256
    batch: int = 128
    threads: int = 8
    rounds: int = 5

    @classmethod
    def tiny(cls) -> "PixelsSize":
        """Return a size that shows that every line runs."""
        return cls(8, (40, 48), 32, 4, 2, 2)


def bench_pixels(folder: Path, size: PixelsSize, device: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures, and the seconds of each round."""
    make_photos(folder / "photos", size.photos, size.photo_hw)
    views, steps = photo_views(folder), size.photos // size.batch

    def stream(resize: ResizeOn, of: ViewSet = views) -> Stream:
        return Stream(
            of, NoTargets(), Order(size.photos, 1, 0), lambda step: Rendering(STUDENT, size.px, "bicubic"), batch_size=size.batch,
            largest_px={STUDENT: size.px}, threads=size.threads, slots=3, pin=device == "cuda", resize=resize,
        )  # fmt: skip

    def pixels(batch: Batch) -> torch.Tensor:
        return batch.to(device)[f"pixels/{STUDENT}"]

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    streams = {f"pixels_{resize}": stream(resize) for resize in RESIZE_ON}
    if device == "cuda" and not nvjpeg.flaw():
        streams["pixels_nvjpeg"] = stream("device", photo_views(folder, on_nvjpeg()))
    cut = next(iter(streams["pixels_device"].batches(0, 1))).cut[STUDENT].to(torch.device(device))
    ours = cut.resized()
    theirs = next(pixels(batch).clone() for batch in streams["pixels_host"].batches(0, 1))
    if not torch.equal(ours, theirs):
        raise SystemExit(f"{device} resizes to other bytes than the host: {int((ours != theirs).sum())} of {ours.numel()} differ")

    def whole(made: Stream, number: int) -> None:
        for batch in made.batches((number + 1) * steps, (number + 2) * steps):
            pixels(batch)
        synchronise()

    def alone(number: int) -> None:
        for _ in range(steps):
            cut.resized()
        synchronise()

    def run_of(made: Stream) -> Any:
        return lambda number: whole(made, number)

    contestants = {name: run_of(made) for name, made in streams.items()}
    seconds = interleave({**contestants, "resize": alone}, size.rounds)
    rates = {name: size.photos / float(np.median(spent)) for name, spent in seconds.items()}
    figures = {f"gpu.{name}.views_per_s": rate for name, rate in rates.items()}
    ratios = {f"gpu.{name}/host": rates[name] / rates["pixels_host"] for name in streams if name != "pixels_host"}
    return {**figures, **ratios}, {"seconds": seconds}
