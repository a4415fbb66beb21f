"""What int8 and int4 keep of a real teacher's tokens, and what they cost: bytes, cosine, rate (BENCHMARKS.md, bench-store).

The tokens are efficientnet-lite0's over the demo's photos, one random view each, normalised by their own statistics as an extraction does.
Each codec's shard is really written: the bytes are those of its objects, the cosines those of rows read back and decoded. The rates are
of one thread on 256 × 1280 made-up tokens a view, the size that the paper's teachers give.

    python -m benchmarks.bench_codec SOURCE [--images 256]
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.features.codec import CODECS, decode, encode
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec, render
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from numpy.typing import NDArray

from .figures import report

TEACHER = "efficientnet-lite0"
SIZE_PX = 512  # a grid of 16 × 16 tokens of 1280 channels: the shape that the store's figures are about
TARGETS = {"store.int8_bytes/fp16": ("<=", 0.51), "store.int8_cosine_p1": (">=", 0.9999)}
RATES = {"encode": 1_000.0, "decode": 2_000.0}
TARGETS |= {f"store.{codec}_{way}_views/s": (">=", rate) for codec in CODECS for way, rate in RATES.items()}
Floats = NDArray[np.float32]


def choose_images(dataset: ImageDataset, count: int, to: Path) -> None:
    """Copy a random sample of a dataset's images, spread over all of it."""
    to.mkdir(parents=True)
    for number in np.random.default_rng(0).choice(len(dataset), min(count, len(dataset)), replace=False).tolist():
        (to / f"{number:08d}").with_suffix(Path(dataset.row(number).id).suffix).write_bytes(dataset.read_image_bytes(number))


def real_tokens(views: ViewSet) -> tuple[Floats, Floats]:
    """Return the teacher's class and patch tokens of every view."""
    teacher = load_teacher(resolve_teacher(TEACHER, size_px=SIZE_PX))
    size_px, interpolation = teacher.spec.preprocessing.size_px, teacher.spec.preprocessing.interpolation
    classes, patches = [], []
    for shard in range(views.shards):
        first, _ = views.shard_images(shard)
        drawn = views.draw_shard(shard)
        for row, crop in enumerate(drawn.crop):
            pixels = render(views.dataset.read_image(first + row), crop, bool(drawn.flip[row]), size_px, interpolation)
            with torch.inference_mode():
                found = teacher(torch.from_numpy(pixels.copy())[None])
            classes.append(found.cls_BD.numpy())
            patches.append(found.patch_BHWD.numpy())
    return np.concatenate(classes), np.concatenate(patches)


def stored(store: FeatureStore, views: ViewSet, statistics: Statistics, tokens: tuple[Floats, Floats], codec: str) -> FeatureReader:
    """Write the tokens to a feature set of this codec."""
    cls, patch = tokens
    layout = FeatureLayout(cls.shape[1], patch.shape[3], (patch.shape[1], patch.shape[2]), codec)
    features = FeatureReader.create(
        store.objects, codec, views, features_identity({"name": TEACHER}, views, statistics, {}, layout), statistics
    )
    for shard in range(views.shards):
        first, last = views.group.shard_span(shard)
        features.commit_shard(shard, features.encode(cls[first:last], patch[first:last]), {}, "")
    return features


def cosines(left: Floats, right: Floats) -> Floats:
    """Return cosine of each token with its counterpart."""
    left, right = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (left, right))  # type: ignore[assignment]
    found: Floats = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


def rates(codec: str, rounds: int = 5) -> dict[str, float]:
    """Return the views a second of one core, encoded and decoded: medians of the thread's own time, which other load hardly moves."""
    patch = np.random.default_rng(0).normal(size=(32, 16, 16, 1280)).astype(np.float32)
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    out = np.empty_like(patch)
    for _ in range(rounds + 1):
        start = time.thread_time()
        encoded = encode(patch, codec)
        middle = time.thread_time()
        decode(encoded.codes, encoded.scale, codec, out)
        seconds["encode"].append(middle - start)
        seconds["decode"].append(time.thread_time() - middle)
    return {name: len(patch) / float(np.median(values[1:])) for name, values in seconds.items()}


def measure(folder: Path, source: str, count: int) -> dict[str, dict[str, float]]:
    """Return by codec: bytes a view, cosine (mean, 1st percentile, least) of the patch tokens, rates."""
    sampled = FeatureStore.create(str(folder / "sample"))
    opened = FeatureStore.open(source) if (Path(source) / "eupe-store.json").exists() else None
    dataset = build_index(sampled.objects, source, "all") if opened is None else opened.dataset(opened.list_datasets()[0])
    choose_images(dataset, count, folder / "images")
    store = FeatureStore.create(str(folder / "store"))
    views = ViewSet.create(store.objects, build_index(store.objects, str(folder / "images"), "photos"), ViewSpec(), 128)
    cls, patch = real_tokens(views)
    moments = Moments(cls.shape[1]), Moments(patch.shape[3])
    moments[0].update(cls)
    moments[1].update(patch)
    statistics = Statistics.from_moments(*moments, len(cls))
    normal = statistics.normalize_cls(cls), statistics.normalize_patch(patch)
    results: dict[str, dict[str, float]] = {}
    for codec in CODECS:
        features = stored(store, views, statistics, normal, codec)
        found = cosines(features.decode(features.read(np.arange(features.rows))), normal[1])
        results[codec] = {
            "bytes": features.stored_bytes() / features.rows,
            "mean": float(found.mean()),
            "p1": float(np.percentile(found, 1)),
            "min": float(found.min()),
        }
        patch_bytes = sum(array.nbytes for array in features.read(np.arange(1))[1:] if array is not None)
        results[codec]["patch_bytes"] = patch_bytes
        results[codec] |= rates(codec)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="runs/demo/store", help="a store, or a source of images")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-codec.json"))
    options = parser.parse_args()
    if not Path(options.source).exists():
        print(f"bench-codec skipped: {options.source} is not there; run `make demo`, or give a folder of photos")
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-codec-"))
    try:
        found = measure(folder, options.source, options.images)
    finally:
        shutil.rmtree(folder)
    for codec, row in found.items():
        print(f"{codec:5} " + "  ".join(f"{name} {value:.6g}" for name, value in row.items()))
    results: dict[str, Any] = {
        "store.int8_bytes/fp16": found["int8"]["bytes"] / found["fp16"]["bytes"],
        "store.int8_patch_bytes/fp16": found["int8"]["patch_bytes"] / found["fp16"]["patch_bytes"],
        "store.int8_cosine_p1": found["int8"]["p1"],
        "store.int8_cosine_mean": found["int8"]["mean"],
        "store.int4_bytes/fp16": found["int4"]["bytes"] / found["fp16"]["bytes"],
        "store.int4_cosine_p1": found["int4"]["p1"],
    }
    results |= {f"store.{codec}_{way}_views/s": found[codec][way] for codec in CODECS for way in RATES}
    command = f"python -m benchmarks.bench_codec --images {options.images}"
    details = {"command": command, "teacher": TEACHER, "size_px": SIZE_PX, "codecs": found}
    report(results, TARGETS, details, options.out)


if __name__ == "__main__":
    main()
