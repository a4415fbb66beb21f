"""The training benchmark's bytes in other libraries' containers: what LitData or MDS in torch's DataLoader make of the same epoch.

One sample a view holds the JPEG's bytes, its crop, and the int8 tokens with their scales, padded to one length, so that the containers of
the store's benchmark (`store_peers`) take it; a worker unpacks it and decodes, crops and resizes with the calls that our stream uses. They
check nothing on the way, ours checks each image's sha256, each crop's digest and each token's hash.
"""

from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.images.fast_jpeg import decode_jpeg
from eupe_pipeline.storage.views.renderers import fast
from eupe_pipeline.storage.views.view_spec import cut, resize
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .store_peers import PEERS, Peer, available

NAMES = ("litdata", "mds")
_HEAD = np.dtype([("jpeg_bytes", np.int64), ("crop", np.int32, 4), ("flip", np.int64)])
Int64s = NDArray[np.int64]


class Packed:
    """All views of a feature set as fixed-size samples: head, tokens, JPEG, padding."""

    def __init__(self, reader: FeatureReader) -> None:
        rows = np.arange(reader.rows)
        tokens, views = reader.read(rows), reader.views.read(rows)
        self.parts = {name: array for name, array in tokens._asdict().items() if array is not None}
        jpegs = [reader.views.dataset.read_image_bytes(row // reader.views.views_per_image) for row in rows.tolist()]
        token_bytes = sum(array[0].nbytes for array in self.parts.values())
        width = _HEAD.itemsize + token_bytes + max(map(len, jpegs))
        self.samples = np.zeros((len(rows), width + width % 2), np.uint8)
        for row, jpeg in enumerate(jpegs):
            head = np.array([(len(jpeg), views.crop[row], int(views.flip[row]))], _HEAD)
            flat = [head.view(np.uint8), *(array[row].reshape(-1).view(np.uint8) for array in self.parts.values())]
            joined = np.concatenate([*flat, np.frombuffer(jpeg, np.uint8)])
            self.samples[row, : len(joined)] = joined
        self.layout = {name: (array.shape[1:], array.dtype) for name, array in self.parts.items()}


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples of one container, unpacked; `rows` is their order."""

    def __init__(self, name: str, folder: Path, packed: Packed, rows: Int64s, size_px: int) -> None:
        self.name, self.folder, self.rows, self.size_px = name, folder, rows, size_px
        self.shape, self.layout = (packed.samples.shape[0], packed.samples.shape[1] // 2), packed.layout
        self._peer: Peer | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        if self._peer is None:  # opened in the worker
            self._peer = PEERS[self.name](self.folder)
            self._peer.open(self.shape)
        sample = np.empty((1, self.shape[1]), np.float16)
        self._peer.read(self.rows[place : place + 1], sample)
        flat = sample[0].view(np.uint8)
        head, start = flat[: _HEAD.itemsize].view(_HEAD)[0], _HEAD.itemsize
        found: dict[str, torch.Tensor] = {}
        for name, (shape, dtype) in self.layout.items():
            stop = start + int(np.prod(shape)) * dtype.itemsize
            found[name] = torch.from_numpy(flat[start:stop].view(dtype).reshape(shape))
            start = stop
        image = decode_jpeg(flat[start : start + int(head["jpeg_bytes"])].tobytes(), "stored")
        assert image is not None
        pixels = resize(cut(image, head["crop"]), bool(head["flip"]), self.size_px, renderer=fast())
        return {**found, "pixels": torch.from_numpy(pixels)}


def written(folder: Path, reader: FeatureReader) -> tuple[Packed, list[str]]:
    """Write the samples into every container whose library is there; returns the names of those."""
    packed = Packed(reader)
    found, absent = available(folder)
    for name, reason in absent.items():
        if name in NAMES:
            print(f"stream  {name} is left out: {reason}")
    for name in (ready := [name for name in NAMES if name in found]):
        found[name].write(packed.samples.view(np.float16))
    return packed, ready
