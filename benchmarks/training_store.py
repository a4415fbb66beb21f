"""A made-up store for the training benchmark: photo-like JPEGs of 500 × 375 px and random int8 tokens in a teacher's shape.

Random codes cost what real ones do to read, check, move and de-quantise; no teacher has to run to make them. `RawTokens` keeps the same
bytes in one flat file, `PlainDataset` is the same work as a map-style dataset for torch's DataLoader.
"""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.renderers import fast
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec, cut, resize
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

VIEWS = 2
SHARD_IMAGES = 32
Int64s = NDArray[np.int64]


def photo(number: int) -> bytes:
    """Return a JPEG of smooth colours under fine noise: about 60 KB, as a photo of this size has."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse).astype(np.int16) + random.normal(0, 12, (375, 500, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_images(folder: Path, images: int) -> None:
    """Return one tar of photos."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(images):
            data = photo(number)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def unit_statistics(dim: int) -> Statistics:
    """Return mean 0 and std 1 of both kinds of token."""
    zeros, ones = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    return Statistics(zeros, ones, zeros, ones, 1)


def make_store(folder: Path, images: int, grid: tuple[int, int], dim: int) -> FeatureReader:
    """Return a whole feature set `bench` in int8 over two views of each image."""
    make_images(folder / "images", images)
    store = FeatureStore.create(str(folder / "store"))
    dataset = build_index(store.objects, str(folder / "images"), "bench")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=VIEWS), SHARD_IMAGES, fast())
    statistics = unit_statistics(dim)
    identity = features_identity({"architecture": "none"}, views, statistics, {}, FeatureLayout(dim, dim, grid, "int8"))
    reader = FeatureReader.create(store.objects, "bench", views, identity, statistics)
    for shard in range(views.shards):
        _fill(views, reader, shard, grid, dim)
    return reader


def _fill(views: ViewSet, reader: FeatureReader, shard: int, grid: tuple[int, int], dim: int) -> None:
    first, last = views.shard_images(shard)
    drawn = views.draw_shard(shard)
    fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, [], drawn_now=True)
    record = views.commit_shard(shard, drawn, {})
    random, count = np.random.default_rng(shard), (last - first) * VIEWS
    tokens = reader.encode(random.normal(size=(count, dim)).astype(np.float32), random.normal(size=(count, *grid, dim)).astype(np.float32))
    reader.commit_shard(shard, tokens, {}, record.digest)


class RawTokens:
    """The same rows' bytes in one flat file, read with `preadv` and nothing else."""

    def __init__(self, path: Path, reader: FeatureReader) -> None:
        rows = reader.read(np.arange(reader.rows))
        parts = [array.reshape(reader.rows, -1).view(np.uint8) for array in rows if array is not None]
        table = np.concatenate(parts, axis=1)
        self.row_bytes = table.shape[1]
        path.write_bytes(table.tobytes())
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, rows: Int64s, out: memoryview) -> None:
        """Read rows into a buffer of `len(rows) * row_bytes` bytes."""
        for place, row in enumerate(rows.tolist()):
            os.preadv(self._descriptor, [out[place * self.row_bytes : (place + 1) * self.row_bytes]], row * self.row_bytes)


class PlainDataset(Dataset[dict[str, torch.Tensor]]):
    """One view with its tokens an item, unpacked by the same library calls: what a DataLoader's workers would do."""

    def __init__(self, store: str, rows: Int64s, size_px: int) -> None:
        self.store, self.rows, self.size_px = store, rows, size_px
        self._reader: FeatureReader | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        if self._reader is None:  # opened in the worker
            self._reader = FeatureStore.open(self.store).features("bench")
        row = self.rows[place : place + 1]
        tokens, views = self._reader.read(row), self._reader.views.read(row)
        crop = cut(self._reader.views.dataset.read_image(int(row[0]) // VIEWS), views.crop[0])
        pixels = resize(crop, bool(views.flip[0]), self.size_px, renderer=self._reader.views.renderer)
        arrays = {"pixels": pixels, "cls": tokens.cls, "patch": tokens.patch, "scale": tokens.scale}
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
