"""From a JPEG to a view on one core: candidates for decoding and resizing side by side, then the whole way of extraction and training.

Candidates: milliseconds of processor time a photo (of all threads: a library that brings its own pays for them), and what they give
against Pillow: the largest difference in levels, the mean one, and the share of values that differ. `pixels.views_per_core/pillow` is
`fill_pixels` over two sets of views of the same 500 × 375 photos, one rendered by Pillow as before and one by the fast renderer: read,
sha256, decode, digest, crop, resize, flip, in random order. Partial decoding (`jpeg_skip_scanlines`) is in no wheel; the reduction by the
DCT is measured on large photos. Rounds are interleaved, medians count, and the ratio is the median of the rounds' ratios.

    python -m benchmarks.bench_rendering [--photos FOLDER]
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.renderers import PILLOW, fast
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Input, ViewSpec, cut, draw, resize
from numpy.typing import NDArray

from .figures import report
from .jpeg_photos import IMAGENET_HW, jpeg_photos, write_many
from .pixel_candidates import Pixels, decoders, resizers

SIDE, COUNT, LARGE_HW = 256, 200, (1500, 2000)
Rounds = dict[str, list[float]]
Rows = dict[str, dict[str, float]]


def processor_ms(contestants: Mapping[str, Callable[[], object]], rounds: int, each: int) -> Rounds:
    """Return processor milliseconds of one of `each` pieces of work by contestant and round, interleaved, after one round of warm-up."""
    found: Rounds = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for name, work in contestants.items():
            start = time.process_time()
            work()
            if number >= 0:
                found[name].append((time.process_time() - start) / each * 1e3)
    return found


def difference(found: list[Pixels], wanted: list[Pixels]) -> dict[str, float]:
    """Return how far pixels are from others, in levels."""
    gaps = [np.abs(ours.astype(np.int16) - theirs) for ours, theirs in zip(found, wanted, strict=True)]
    return {
        "largest": float(max(gap.max() for gap in gaps)),
        "mean": float(np.mean([gap.mean() for gap in gaps])),
        "share": float(np.mean([(gap > 0).mean() for gap in gaps])),
    }


def _all(work: Callable[[Any], object], items: Sequence[Any]) -> None:
    for item in items:
        work(item)


def measure_decoders(photos: list[bytes], rounds: int) -> Rows:
    """Return milliseconds and differences of each decoder."""
    known = decoders()
    wanted = [known["pillow"](data) for data in photos]
    spent = processor_ms({name: partial(_all, decode, photos) for name, decode in known.items()}, rounds, len(photos))
    return {
        name: {"ms": float(np.median(spent[name])), **difference([decode(data) for data in photos], wanted)}
        for name, decode in known.items()
    }


def random_crops(photos: list[bytes]) -> list[Pixels]:
    """Return a random crop of each photo, as views have them."""
    images = [decode_image(data, where="a photo") for data in photos]
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    boxes = draw(ViewSpec(), [str(n) for n in range(len(images))], sizes).crop
    return [np.ascontiguousarray(cut(image, box)) for image, box in zip(images, boxes, strict=True)]


def measure_resizers(crops: list[Pixels], rounds: int) -> Rows:
    """Return milliseconds and differences of each resizer, to a side of 256."""
    known = resizers()
    wanted = [known["pillow"](crop, SIDE) for crop in crops]
    spent = processor_ms(
        {name: partial(_all, partial(_swapped, work), crops) for name, work in known.items()}, rounds, len(crops)
    )  # fmt: skip
    return {
        name: {"ms": float(np.median(spent[name])), **difference([work(crop, SIDE).copy() for crop in crops], wanted)}
        for name, work in known.items()
    }


def _swapped(work: Callable[[Pixels, int], Pixels], crop: Pixels) -> Pixels:
    return work(crop, SIDE)


def measure_reduction(photos: list[bytes], rounds: int) -> Rows:
    """Return what decoding at half size by the DCT gives for large photos that become views of 256 px, against whole decoding."""
    import simplejpeg

    renderer = fast()

    def whole(data: bytes) -> Pixels:
        return resize(simplejpeg.decode_jpeg(data), False, SIDE, renderer=renderer)

    def reduced(data: bytes, factor: int) -> Pixels:
        height, width = LARGE_HW
        small = simplejpeg.decode_jpeg(data, min_height=height // factor, min_width=width // factor, min_factor=factor)
        return resize(small, False, SIDE, renderer=renderer)

    ways: dict[str, Callable[[bytes], Pixels]] = {
        "pillow": lambda data: resize(decode_image(data, where="a photo"), False, SIDE),
        "simplejpeg and torch": whole,
        "reduced by 2, then torch": partial(reduced, factor=2),
        "reduced by 4, then torch": partial(reduced, factor=4),
    }
    wanted = [ways["pillow"](data) for data in photos]
    spent = processor_ms({name: partial(_all, way, photos) for name, way in ways.items()}, rounds, len(photos))
    return {name: {"ms": float(np.median(spent[name])), **difference([way(data) for data in photos], wanted)} for name, way in ways.items()}


def measure_views(folder: Path, photos: list[bytes], rounds: int) -> tuple[Rounds, dict[str, float]]:
    """Return milliseconds a view of both renderers by round, and their difference."""
    write_many(photos, folder / "photos", COUNT)
    store = FeatureStore.create(str(folder / "store"))
    dataset = build_index(store.objects, str(folder / "photos"), "photos")
    rows = np.random.default_rng(0).permutation(len(dataset))
    out: dict[str, NDArray[np.uint8]] = {name: np.empty((len(rows), SIDE, SIDE, 3), np.uint8) for name in ("pillow", "fast")}
    contestants: dict[str, Callable[[], object]] = {}
    for name, renderer in (("pillow", PILLOW), ("fast", fast())):
        views = ViewSet.create(store.objects, dataset, ViewSpec(), 64, renderer)
        for shard in range(views.shards):
            drawn = views.draw_shard(shard)
            fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, [], drawn_now=True)
            views.commit_shard(shard, drawn, {})
        contestants[name] = partial(_fill, views, rows, out[name])
    spent = processor_ms(contestants, rounds, len(rows))
    return spent, difference(list(out["fast"]), list(out["pillow"]))


def _fill(views: ViewSet, rows: NDArray[np.int64], out: Pixels) -> None:
    fill_pixels(views, rows, views.read(rows), [(Input(SIDE), out)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=None, help="Default: twenty of ImageNet, fetched once.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-rendering.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos, folder = jpeg_photos(options.photos), Path(tempfile.mkdtemp(prefix="bench-rendering-"))
    try:
        spent, gap = measure_views(folder, photos, options.rounds)
    finally:
        shutil.rmtree(folder)
    tables = {
        "decoders": measure_decoders(photos, options.rounds),
        "resizers": measure_resizers(random_crops(photos), options.rounds),
        "large photos": measure_reduction(jpeg_photos(options.photos, LARGE_HW), max(3, options.rounds // 3)),
    }
    for title, rows in tables.items():
        for name, row in rows.items():
            print(f"{title:13} {name:36} " + "  ".join(f"{what} {value:.4g}" for what, value in row.items()), flush=True)
    results = {
        "pixels.views_per_core/pillow": float(np.median(np.array(spent["pillow"]) / np.array(spent["fast"]))),
        "pixels.views_per_core": 1e3 / float(np.median(spent["fast"])),
        "pixels.views_per_core_pillow": 1e3 / float(np.median(spent["pillow"])),
        "pixels.largest_difference_levels": gap["largest"],
        "pixels.share_that_differs": gap["share"],
    }
    details = {
        "command": "python -m benchmarks.bench_rendering", "photos": len(photos), "size_hw": IMAGENET_HW,
        "bytes": float(np.mean([len(data) for data in photos])), "renderer": fast().text, "tables": tables,
    }  # fmt: skip
    report(results, {"pixels.views_per_core/pillow": (">= ", 2.2)}, details, options.out)


if __name__ == "__main__":
    main()
