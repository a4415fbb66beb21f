"""How a view set should store its rendered pixels: bytes and decode rate of raw and lossless forms, beside the images that they replace.

Random views of real photos are rendered once; each form stores and gives back every one of them, bit by bit. `store` is the form chosen,
read through `ViewSet.read_pixels` with its checks; `images` is what a training step does without it: read, decode, digest, crop, resize.
All on one thread, warm; rounds are interleaved and medians count. The cold figure follows from bytes and a disk's rate.

    python -m benchmarks.bench_pixels scikit-image=256 imagenet=256 cifar=64       (folders of images or tars = side in px)
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import Pixels
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec, cut, pixel_digest, resize
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]  # it has no types
from PIL import Image

from .figures import interleave, medians, report

ROWS = 256


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
    """zstd over the bytes, or over each row's difference from the one above it."""

    def encode(pixels: Pixels) -> bytes:
        rows = pixels.copy()
        if difference:
            rows[1:] -= pixels[:-1]
        return bytes(Zstd(level).encode(rows))

    def decode(data: bytes) -> Pixels:
        rows = np.frombuffer(Zstd(level).decode(data), np.uint8).reshape(side, side, 3)
        return np.add.accumulate(rows, axis=0, dtype=np.uint8) if difference else rows

    return Form(encode, decode)


def forms(side: int) -> dict[str, Form]:
    """What could be stored."""
    return {
        "raw": Form(lambda pixels: pixels.tobytes(), lambda data: np.frombuffer(data, np.uint8).reshape(side, side, 3).copy()),
        "png": _file("PNG", compress_level=1),
        "webp": _file("WEBP", lossless=True, method=0, quality=0),
        "webp_small": _file("WEBP", lossless=True, method=4, quality=50),
        "zstd": _zstd(side, 3, False),
        "difference_zstd": _zstd(side, 1, True),
    }


def made_views(folder: Path, source: str, side: int) -> ViewSet:
    """A committed view set with pixels over a source, of about `ROWS` views."""
    store = FeatureStore.create(str(folder))
    dataset = build_index(store.objects, source, "photos")
    views = ViewSet.create(
        store.objects, dataset, ViewSpec(views_per_image=max(1, ROWS // len(dataset)), pixels=StoredPixels(side)), images_per_shard=64
    )
    for shard in range(views.shards):
        drawn, (first, _) = views.draw_shard(shard), views.shard_images(shard)
        pixels = np.empty((len(drawn.crop), side, side, 3), np.uint8)
        for row, crop in enumerate(drawn.crop):
            found = cut(views.dataset.read_image(first + row // views.views_per_image), crop)
            drawn.digest[row] = np.frombuffer(pixel_digest(found), np.uint8)
            pixels[row] = resize(found, bool(drawn.flip[row]), side)
        views.commit_shard(shard, drawn, {}, pixels)
    return views


def from_images(views: ViewSet, rows: list[int], side: int) -> None:
    """What a step without stored pixels does, view by view, in random order."""
    recorded = views.read(np.array(rows))
    for n, row in enumerate(rows):
        crop = cut(views.dataset.read_image(row // views.views_per_image), recorded.crop[n])
        assert pixel_digest(crop) == recorded.digest[n].tobytes()
        resize(crop, bool(recorded.flip[n]), side)


def measure(source: str, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """By form: bytes over raw bytes, views a second, and that over the images' rate."""
    folder = Path(tempfile.mkdtemp(prefix="bench-pixels-"))
    try:
        views = made_views(folder, source, side)
        rows = np.random.default_rng(0).permutation(views.rows)[:ROWS]
        whole = views.read_pixels(rows)
        known = forms(side)
        encoded = {name: [form.encode(pixels) for pixels in whole] for name, form in known.items()}
        for name, form in known.items():
            assert all(np.array_equal(form.decode(data), pixels) for data, pixels in zip(encoded[name], whole, strict=True)), name
        contestants: dict[str, Callable[[int], object]] = {name: partial(_decode_all, form, encoded[name]) for name, form in known.items()}
        contestants["store"] = lambda _: views.read_pixels(rows, whole)
        contestants["images"] = lambda _: from_images(views, rows.tolist(), side)
        seconds = medians(interleave(contestants, rounds))
        raw_bytes = whole[0].nbytes
        sizes = {name: float(np.mean([len(data) for data in found])) for name, found in encoded.items()}
        sizes |= {"store": views.stored_bytes() / views.rows, "images": _image_bytes(views)}
        return {
            name: {
                "bytes/raw": sizes[name] / raw_bytes,
                "views/s": len(rows) / seconds[name],
                "rate/images": seconds["images"] / seconds[name],
            }
            for name in contestants
        }
    finally:
        shutil.rmtree(folder)


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
