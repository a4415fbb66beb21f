"""A small store of made-up images and tokens: every value follows from the seed, so that any process writes the same one.

Run as a program it forks writers of a store, to be killed or to collide with each other: importing once for all of them.

    echo '["STORE", "FEATURES_KEY", [SEED, ...]]' | python made_up_store.py
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from eupe_pipeline.storage.features.codec import Encoded
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, TokenRows, features_identity
from eupe_pipeline.storage.features.phis import hadamard
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.shards.commit import Record
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Views, ViewSpec, cut, pixel_digest, render
from numpy.typing import NDArray
from PIL import Image

CLS_DIM, PATCH_DIM, GRID = 12, 64, (2, 3)


class Made(NamedTuple):
    """A store with one dataset, one set of views and one feature set."""

    store: FeatureStore
    dataset: ImageDataset
    views: ViewSet
    features: FeatureReader

    @property
    def folder(self) -> Path:
        return Path(self.store.url)


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` noisy PNGs of several sizes in three label folders."""
    random = np.random.default_rng(seed)
    for n in range(count):
        path = folder / f"class{n % 3}" / f"{n:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9 + n % 4, 8 + n % 5, 3), np.uint8)).save(path)
    return folder


def drawn_with_digests(views: ViewSet, shard: int) -> Views:
    """A shard's views with the digests of their real pixels."""
    drawn = views.draw_shard(shard)
    first, _ = views.shard_images(shard)
    for row, crop in enumerate(drawn.crop):
        image = views.dataset.read_image(first + row // views.views_per_image)
        drawn.digest[row] = np.frombuffer(pixel_digest(cut(image, crop)), np.uint8)
    return drawn


def rendered(views: ViewSet, shard: int) -> NDArray[np.uint8]:
    """The pixels of a shard's views as the set stores them."""
    assert views.spec.pixels is not None
    drawn, (first, _) = views.draw_shard(shard), views.shard_images(shard)
    images = [views.dataset.read_image(first + row // views.views_per_image) for row in range(len(drawn.crop))]
    size_px, interpolation = views.spec.pixels.size_px, views.spec.pixels.interpolation
    return np.stack([render(image, drawn.crop[n], bool(drawn.flip[n]), size_px, interpolation) for n, image in enumerate(images)])


def raw_tokens(features: FeatureReader, shard: int, noise: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The class and patch tokens of a shard: a function of the shard alone, but for the noise of another machine."""
    first, last = features.group.shard_span(shard)
    random = np.random.default_rng([7, shard])
    cls = random.normal(size=(last - first, features.cls_dim or 0)).astype(np.float32)
    patch = random.normal(size=(last - first, *features.grid, features.patch_dim)).astype(np.float32)
    other = np.random.default_rng().normal(scale=noise, size=patch.shape).astype(np.float32)
    return cls, patch + other


def tokens(features: FeatureReader, shard: int, noise: float = 0.0) -> TokenRows:
    """The stored form of a shard's made-up tokens; of a sampled set only those at its places."""
    cls, patch = raw_tokens(features, shard, noise)
    positions = features.draw_positions(shard)
    return features.encode(cls if features.cls_dim else None, patch if positions is None else take_positions(patch, positions), positions)


def raw_layers(features: FeatureReader, shard: int) -> dict[int, NDArray[np.float32]]:
    """The patch tokens of a shard's layers, before some are sampled: the final ones with their channels turned round, times the block."""
    _, patch = raw_tokens(features, shard)
    return {layer: np.flip(patch, axis=-1) * np.float32(layer) for layer in features.layout.layers}


def layers(features: FeatureReader, shard: int) -> Mapping[int, Encoded]:
    """The stored form of a shard's layers, at the places of its final tokens."""
    positions, whole = features.draw_positions(shard), raw_layers(features, shard)
    return features.encode_layers(whole if positions is None else {n: take_positions(one, positions) for n, one in whole.items()})


def commit(made: Made, shard: int, noise: float = 0.0) -> Record:
    """Commit one shard of views and features, as an extraction does."""
    if made.views.read_shard(shard) is None:
        made.views.commit_shard(shard, drawn_with_digests(made.views, shard), {})
    record = made.views.group.record(shard)
    assert record is not None
    return made.features.commit_shard(shard, tokens(made.features, shard, noise), {}, record.digest, layers(made.features, shard))


def plan(root: Path, *, images: int = 20, codec: str = "int8", cls_dim: int | None = CLS_DIM, name: str = "made-up") -> Made:
    """A store with everything but shards: 2 views an image, 4 images (8 rows) a shard."""
    store = FeatureStore.create(str(root / "store"))
    if not (root / "images").exists():
        write_images(root / "images", images)
    dataset = build_index(store.objects, str(root / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=3), images_per_shard=4)
    return with_features(Made(store, dataset, views, None), codec, cls_dim, name)  # type: ignore[arg-type]  # filled in there


def with_features(
    made: Made,
    codec: str,
    cls_dim: int | None = CLS_DIM,
    name: str = "made-up",
    tokens_per_view: int | None = None,
    resampled_from: tuple[int, int] | None = None,
    phis: bool = False,
    blocks: tuple[int, ...] = (),
) -> Made:
    """The same store with another, empty feature set; with PHI-S its matrices are as exact on any machine as Hadamard's are.

    The statistics of each of its layers, `blocks`, are their own.
    """
    values = np.linspace(0.5, 1.5, PATCH_DIM, dtype=np.float32)
    cls_values = None if cls_dim is None else np.linspace(0.5, 1.5, cls_dim, dtype=np.float32)
    matrices = [np.float32(0.5) * hadamard(dim).astype(np.float32) for dim in (CLS_DIM, PATCH_DIM)] if phis else []
    of_blocks = {block: Statistics(None, None, values * np.float32(block), values, 8) for block in blocks}
    statistics = Statistics(cls_values, cls_values, values, values, 8, *matrices, layers=of_blocks)
    layout = FeatureLayout(cls_dim, PATCH_DIM, GRID, codec, tokens_per_view, resampled_from, blocks)
    identity = features_identity({"architecture": "made up", "weights_sha256": "0" * 64}, made.views, statistics, {}, layout)
    return made._replace(features=FeatureReader.create(made.store.objects, name, made.views, identity, statistics))


def build(root: Path, *, images: int = 20, codec: str = "int8", cls_dim: int | None = CLS_DIM) -> Made:
    """The whole store."""
    made = plan(root, images=images, codec=codec, cls_dim=cls_dim)
    for shard in range(made.views.shards):
        commit(made, shard)
    return made


def reopen(made: Made) -> Made:
    """The same store seen by a new process: nothing cached."""
    store = FeatureStore.open(made.store.url)
    features = store.features(made.features.key)
    return Made(store, features.views.dataset, features.views, features)


def everything(made: Made) -> list[NDArray[np.generic]]:
    """All that a run reads: views and tokens of every row, and every image's pixels."""
    rows = np.arange(made.features.rows)
    found: list[NDArray[np.generic]] = [*made.views.read(rows)]
    found += [array for array in made.features.read(rows) if array is not None]
    found += [array for _, array in sorted(made.features.statistics.arrays().items())]
    return [*found, made.dataset.labels(), *(made.dataset.read_image(n) for n in range(len(made.dataset)))]


def same(left: list[NDArray[np.generic]], right: list[NDArray[np.generic]]) -> bool:
    """Whether two readings are equal to the byte."""
    return len(left) == len(right) and all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_missing(url: str, key: str, seed: int) -> None:
    """Commit the shards that have no record, in an order of one's own."""
    store = FeatureStore.open(url)
    features = store.features(key)
    made = Made(store, features.views.dataset, features.views, features)
    for shard in np.random.default_rng(seed).permutation(features.missing_shards()).tolist():
        commit(made, shard)


def fork_writer(url: str, key: str, seed: int) -> int:
    """Another process that writes what is missing; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        write_missing(url, key, seed)
    except Exception:  # noqa: BLE001  # whatever it is, this process must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def serve() -> None:
    """For each line of the input, fork a writer a seed; print their ids; after another line, their exit statuses when all have ended."""
    with tempfile.TemporaryDirectory() as warm_up:
        build(Path(warm_up), images=4)  # what libraries load at their first use, once instead of in every writer
    for line in sys.stdin:
        url, key, seeds = json.loads(line)
        children = [fork_writer(url, key, seed) for seed in seeds]
        print(json.dumps(children), flush=True)
        sys.stdin.readline()  # until then they keep their ids, so that a signal cannot reach another process
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    serve()
