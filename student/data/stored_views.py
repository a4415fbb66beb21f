"""A torch `Dataset` over a store, for notebooks and for your own training loop: a recorded view, its tokens, its label.

    views = StoredViews("runs/demo/store", ["efficientnet-lite0"], size_px=64)
    batch = next(iter(DataLoader(views, batch_size=32, shuffle=True, num_workers=2)))
    batch["tokens"]["efficientnet-lite0"]["patch"]  # (32, H, W, D) fp32, normalised

Rows of images that a teacher failed on are left out. A batch is one merged, checked read of each feature set (`__getitems__`). Workers open
the store by themselves, so forked and spawned ones both work. Our own trainer does not use this: `stream` builds batches in threads,
without the copy from a worker's memory, and decodes on the device.
Axes: n samples, H × W grid or T sampled tokens, D channels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ...storage.core.errors import BadInput
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, as_size
from ...storage.views.pixels import view_pixels
from ...storage.views.view_spec import Input

Sample = dict[str, Any]


class StoredViews(Dataset[Sample]):
    """Samples `{"id", "view", "label", "tokens": {teacher: {"patch"[, "cls"][, "position"]}}[, "pixels" (size, size, 3) uint8]}`.

    Tokens are normalised fp32; `statistics` of `readers()[teacher]` give the teacher's own back. Pixels come with `size_px`, undistorted.
    Raises `BadInput` for feature sets over different views or the same teacher twice.
    """

    def __init__(
        self, store_url: str | Path, features: Sequence[str] | str, size_px: SizePx | None = None, interpolation: str = "bicubic"
    ) -> None:
        self.store_url, self.size_px, self.interpolation = str(store_url), None if size_px is None else as_size(size_px), interpolation
        store = FeatureStore.open(store_url)
        self.keys = [store.features(name).key for name in ([features] if isinstance(features, str) else features)]
        self._readers: tuple[int, dict[str, FeatureReader]] = (-1, {})
        readers = self.readers()
        if len(readers) < len(self.keys) or not self.keys:
            raise BadInput(f"name each teacher's feature set once, got {list(features)}")
        if len({reader.views.key for reader in readers.values()}) > 1:
            listed = ", ".join(f"{reader.key} over {reader.views.key}" for reader in readers.values())
            raise BadInput(f"feature sets of one dataset share their views, got {listed}; extract them together")
        failed = np.unique(np.concatenate([reader.failed_rows() for reader in readers.values()]))
        self._count = next(iter(readers.values())).rows - len(failed)
        self._usable_before: NDArray[np.int64] = failed - np.arange(len(failed))  # each failed row: how many usable ones come before it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": (-1, {})}

    def readers(self) -> dict[str, FeatureReader]:
        """Return the feature sets by teacher, opened when this process first needs them."""
        if self._readers[0] != os.getpid():  # a forked DataLoader worker has its parent's locks, but not its threads and connections
            store = FeatureStore.open(self.store_url)
            self._readers = os.getpid(), {reader.name: reader for reader in map(store.features, self.keys)}
        return self._readers[1]

    def __len__(self) -> int:
        return self._count

    def rows_at(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows (n,) of some indices, negative ones from the end; raises IndexError. No array of all rows is held."""
        positions = np.asarray(indices, np.int64)
        if len(positions) and not (-self._count <= positions.min() and positions.max() < self._count):
            raise IndexError(f"indices {positions.min()} to {positions.max()} of {self._count} samples")
        positions = np.where(positions < 0, positions + self._count, positions)
        rows: NDArray[np.int64] = positions + np.searchsorted(self._usable_before, positions, side="right")
        return rows

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of some indices, from one read of each feature set; torch's `DataLoader` calls this."""
        rows = self.rows_at(indices)
        readers = self.readers()
        views = next(iter(readers.values())).views
        images, numbers = np.divmod(rows, views.views_per_image)
        image_rows = [views.dataset.row(image) for image in images.tolist()]
        samples: list[Sample] = [
            {"id": row.id, "view": int(number), "label": row.label, "tokens": {}} for row, number in zip(image_rows, numbers, strict=True)
        ]
        for name, reader in readers.items():
            for sample, tokens in zip(samples, _decoded(reader, rows), strict=True):
                sample["tokens"][name] = tokens
        if self.size_px is not None:
            pixels = view_pixels(views, rows, Input(self.size_px, self.interpolation))
            for sample, pixels_HWC in zip(samples, torch.from_numpy(pixels), strict=True):
                sample["pixels"] = pixels_HWC
        return samples


def _decoded(reader: FeatureReader, rows: NDArray[np.int64]) -> list[dict[str, torch.Tensor]]:
    stored = reader.read(rows)
    named = {"patch": reader.decode(stored), "cls": stored.cls, "position": stored.position}
    tensors = {
        name: torch.from_numpy(values.astype(np.int64 if name == "position" else np.float32, copy=False))
        for name, values in named.items()
        if values is not None
    }
    return [{name: values[n] for name, values in tensors.items()} for n in range(len(rows))]
