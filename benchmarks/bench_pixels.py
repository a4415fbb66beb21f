"""How a view set should store its rendered pixels: bytes and decode rate of raw and lossless forms, beside the images that they replace.

Random views of real photos are rendered once; each form stores and gives back every one of them, bit by bit, but for `yuv420` (colour at
half resolution, half of the bytes), whose error is stated. `store` is the form chosen,
read through `ViewSet.read_pixels` with its checks; `images` is what a training step does without it: read, decode, digest, crop, resize.
All on one thread, warm; rounds are interleaved and medians count. `from_disk` is what the disk that was measured allows, or the decoder
where that is slower.

    python -m benchmarks.bench_pixels scikit-image=256 imagenet=256 cifar=64       (folders of images or tars = side in px)
"""

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import Pixels
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels, view_pixels
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]  # it has no types
from PIL import Image

from .figures import interleave, medians, report

ROWS = 256
LOSSY = ("yuv420",)


class Form(NamedTuple):
    """A lossless form of one view's pixels."""

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]


def _file(kind: str, **options: Any) -> Form:
    def encode(pixels: Pixels) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return Form(encode, lambda data: np.asarray(Image.open(io.BytesIO(data))))


def _zstd(side: int, level: int, difference: bool) -> Form:
    """Compress the bytes, or each row's difference from the one above it, by zstd."""

    def encode(pixels: Pixels) -> bytes:
        rows = pixels.copy()
        if difference:
            rows[1:] -= pixels[:-1]
        return bytes(Zstd(level).encode(rows))

    def decode(data: bytes) -> Pixels:
        rows = np.frombuffer(Zstd(level).decode(data), np.uint8).reshape(side, side, 3)
        return np.add.accumulate(rows, axis=0, dtype=np.uint8) if difference else rows

    return Form(encode, decode)


def _yuv420(side: int) -> Form:
    """Keep brightness whole and colour at half resolution, as JPEG does; Pillow converts and enlarges."""
    half, whole = side // 2, side * side

    def encode(pixels: Pixels) -> bytes:
        planes = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
        colour = (planes[..., 1:].reshape(half, 2, half, 2, 2).astype(np.uint16).sum((1, 3)) + 2) // 4
        return bytes(planes[..., 0].tobytes() + colour.astype(np.uint8).transpose(2, 0, 1).tobytes())

    def decode(data: bytes) -> Pixels:
        flat = np.frombuffer(data, np.uint8)
        light = Image.fromarray(flat[:whole].reshape(side, side))
        small = flat[whole:].reshape(2, half, half)
        colours = [Image.fromarray(plane).resize((side, side), Image.Resampling.BILINEAR) for plane in small]
        return np.asarray(Image.merge("YCbCr", (light, *colours)).convert("RGB"))

    return Form(encode, decode)


def disk_bytes_per_s(folder: Path, size: int = 1 << 28) -> float:
    """Return what reading a file that is not in memory gives, in large blocks; the median of three."""
    path, block, rates = folder / "block", bytearray(1 << 20), []
    path.write_bytes(np.random.default_rng(0).bytes(size))
    for _ in range(3):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while os.readv(file, [block]):
            pass
        rates.append(size / (time.perf_counter() - start))
        os.close(file)
    path.unlink()
    return float(np.median(rates))


def forms(side: int) -> dict[str, Form]:
    """Return the forms that could be stored."""
    return {
        "raw": Form(lambda pixels: pixels.tobytes(), lambda data: np.frombuffer(data, np.uint8).reshape(side, side, 3).copy()),
        "png": _file("PNG", compress_level=1),
        "webp": _file("WEBP", lossless=True, method=0, quality=0),
        "webp_small": _file("WEBP", lossless=True, method=4, quality=50),
        "zstd": _zstd(side, 3, False),
        "difference_zstd": _zstd(side, 1, True),
        "yuv420": _yuv420(side),
    }


def made_views(folder: Path, source: str, side: int) -> ViewSet:
    """Return a committed view set with pixels over a source, of about `ROWS` views."""
    store = FeatureStore.create(str(folder))
    dataset = build_index(store.objects, source, "photos")
    views = ViewSet.create(
        store.objects, dataset, ViewSpec(views_per_image=max(1, ROWS // len(dataset)), pixels=StoredPixels(side)), images_per_shard=64
    )
    for shard in range(views.shards):
        drawn = views.draw_shard(shard)
        pixels = np.empty((len(drawn.crop), side, side, 3), np.uint8)
        fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, [(Input(side), pixels)], drawn_now=True)
        views.commit_shard(shard, drawn, {}, pixels)
    return views


def measure(source: str, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return by form: bytes over raw bytes, views a second, and that over the images' rate."""
    folder = Path(tempfile.mkdtemp(prefix="bench-pixels-"))
    try:
        views = made_views(folder, source, side)
        rows = np.random.default_rng(0).permutation(views.rows)[:ROWS]
        whole = views.read_pixels(rows)
        known = forms(side)
        encoded = {name: [form.encode(pixels) for pixels in whole] for name, form in known.items()}
        for name, form in known.items():
            if name not in LOSSY:
                assert all(np.array_equal(form.decode(data), pixels) for data, pixels in zip(encoded[name], whole, strict=True)), name
        contestants: dict[str, Callable[[int], object]] = {name: partial(_decode_all, form, encoded[name]) for name, form in known.items()}
        contestants["store"] = lambda _: views.read_pixels(rows, whole)
        unstored = ViewSet(views.group.objects, views.key, views.dataset, views.identity)
        unstored.spec = replace(views.spec, pixels=None)  # what a step without stored pixels does, in random order
        contestants["images"] = lambda _: view_pixels(unstored, rows, Input(side))
        seconds = medians(interleave(contestants, rounds))
        raw_bytes = whole[0].nbytes
        disk = disk_bytes_per_s(folder)
        sizes = {name: float(np.mean([len(data) for data in found])) for name, found in encoded.items()}
        sizes |= {"store": views.stored_bytes() / views.rows, "images": _image_bytes(views)}
        return {
            name: {
                "bytes/raw": sizes[name] / raw_bytes,
                "views/s": len(rows) / seconds[name],
                "rate/images": seconds["images"] / seconds[name],
                "from_disk_views/s": min(len(rows) / seconds[name], disk / sizes[name]),
                **_error(known, encoded, whole, name),
            }
            for name in contestants
        }
    finally:
        shutil.rmtree(folder)


def _error(known: dict[str, Form], encoded: dict[str, list[bytes]], whole: Pixels, name: str) -> dict[str, float]:
    """Return how far a lossy form's pixels are from those that went in, in levels; {} of the others."""
    if name not in LOSSY:
        return {}
    found = np.stack([known[name].decode(data) for data in encoded[name]])
    gap = np.abs(found.astype(np.int16) - whole)
    return {"largest_levels": float(gap.max()), "mean_levels": float(gap.mean()), "share_over_2": float((gap > 2).mean())}


def _decode_all(form: Form, encoded: list[bytes], number: int) -> None:
    for data in encoded:
        form.decode(data)


def _image_bytes(views: ViewSet) -> float:
    return float(np.mean([views.dataset.row(image).length for image in range(len(views.dataset))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE=PX")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-pixels.json"))
    options = parser.parse_args()
    results: dict[str, float] = {}
    for word in options.sources:
        source, _, side = word.rpartition("=")
        for form, found in measure(source, int(side), options.rounds).items():
            results |= {f"pixels.{Path(source).name}_{side}.{form}.{name}": value for name, value in found.items()}
    command = f"python -m benchmarks.bench_pixels {' '.join(f'{Path(word).name}' for word in options.sources)}"
    report(results, {}, {"command": command, "views": ROWS}, options.out)


if __name__ == "__main__":
    main()
