"""One token for each image of a feature set, normalised alike for several sets: images are compared by these.

The normalised class token of an image's first view (k = 0); of a teacher without class tokens the mean of its normalised patch
tokens, without those in the padding of letterboxed views.
Sets that keep the teacher's own values (pooled ones, of evaluations) are normalised here by the moments of these very tokens: in the raw
space every two images of most teachers are alike. Held as they are stored (fp16, or fp32), and brought to unit length in blocks, so that
60,000 images of 1,280 channels take 154 MB. Axes: N images, D channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from ...storage.core.events import OnEvent
from ...storage.core.identity import differing_fields
from ...storage.features.features import FeatureReader
from ...storage.features.statistics import Moments

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]

_READ_ROWS = 2048
_PATCH_BYTES = 64 << 20  # of decoded patch tokens at once
BLOCK = 2048


@dataclass(frozen=True)
class Tokens:
    """Tokens (N, D) of images, and which images of the dataset they are."""

    values_ND: NDArray[np.floating]
    inverse_norm_N: Float32s
    """0 for a token of zeros, whose cosines are 0."""
    images_N: Int64s

    def __len__(self) -> int:
        return len(self.values_ND)

    @classmethod
    def of(cls, values_ND: NDArray[np.floating], images_N: Int64s | None = None) -> "Tokens":
        """Return tokens with their inverse norms; raise `BadInput` for one that is not finite."""
        norms = np.empty(len(values_ND), np.float32)
        for start in range(0, len(values_ND), BLOCK):
            part = values_ND[start : start + BLOCK].astype(np.float32)
            norms[start : start + BLOCK] = np.sqrt(np.einsum("nd,nd->n", part, part))
        images = np.arange(len(values_ND), dtype=np.int64) if images_N is None else images_N
        if (bad := np.flatnonzero(~np.isfinite(norms))).size:
            raise BadInput(f"the token of image {images[bad[0]]} is not finite; {bad.size} of {len(norms)} are not")
        return cls(values_ND, np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0), images)

    def unit(self, which: slice | Int64s) -> Float32s:
        """Return some tokens (n, D) at unit length, fp32."""
        units: Float32s = self.values_ND[which].astype(np.float32)
        units *= self.inverse_norm_N[which, None]
        return units

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, Float32s]]:
        """Yield (number of the first, its block of unit tokens) over all tokens."""
        for start in range(0, len(self), size):
            yield start, self.unit(slice(start, start + size))

    def only(self, which: NDArray[Any]) -> "Tokens":
        """Return some of the tokens, by number or mask."""
        return Tokens(self.values_ND[which], self.inverse_norm_N[which], self.images_N[which])


def kind_of(reader: FeatureReader) -> str:
    """Return in words which token stands for an image."""
    return "mean of patch tokens (the teacher has no class token)" if reader.cls_dim is None else "class token"


def read_tokens(reader: FeatureReader, on_event: OnEvent) -> Tokens:
    """Return the normalised tokens of all images that have any; raise `BadInput` for an incomplete set, `CacheDamaged` for damage."""
    values, images = _stored(reader, on_event)
    if "pooled" in reader.identity["statistics"]:
        mean, std = _moments(values)
        _rewrite(values, lambda part: (part - mean) / std)
    return Tokens.of(values, images)


def read_in_one_space(reader: FeatureReader, other: FeatureReader, on_event: OnEvent) -> tuple[Tokens, Tokens]:
    """Return the tokens of two sets by one teacher, both normalised as the first is; raise `CacheMismatch` for two teachers."""
    if lines := differing_fields(other.identity["teacher"], reader.identity["teacher"]):
        raise CacheMismatch(
            f"{other.key} was made by another teacher than {reader.key}: {'; '.join(lines[:3])}. Their tokens cannot be compared; extract "
            "both datasets with one teacher"
        )
    if other.views.dataset.digest == reader.views.dataset.digest:
        raise BadInput(f"{other.key} and {reader.key} are both over {reader.views.dataset.key}: --against takes the features of a test set")
    (ours, images), (theirs, their_images) = _stored(reader, on_event), _stored(other, on_event)
    kind = "patch" if reader.cls_dim is None else "cls"
    if reader.statistics.digest != other.statistics.digest:
        theirs = theirs.astype(np.float32)
        _rewrite(theirs, getattr(other.statistics, f"denormalize_{kind}"))
        _rewrite(theirs, getattr(reader.statistics, f"normalize_{kind}"))
    if "pooled" in reader.identity["statistics"]:
        mean, std = _moments(ours)
        for values in (ours, theirs):
            _rewrite(values, lambda part: (part - mean) / std)
    return Tokens.of(ours, images), Tokens.of(theirs, their_images)


def _stored(reader: FeatureReader, on_event: OnEvent) -> tuple[NDArray[np.floating], Int64s]:
    """Return the stored tokens of the images that have any, and their numbers."""
    if missing := reader.missing_shards():
        raise BadInput(
            f"{reader.key} is not complete: {len(missing)} of {reader.shards} shards are missing; run the same `extract-features` command "
            "again to its end"
        )
    views = reader.views.views_per_image
    images = np.setdiff1d(np.arange(len(reader.views.dataset), dtype=np.int64), reader.failed_rows() // views)
    if not len(images):
        raise BadInput(f"{reader.key} has no tokens: all of its images failed; look at `features show`")
    dim = reader.patch_dim if reader.cls_dim is None else reader.cls_dim
    dtype = np.dtype(np.float32) if reader.cls_dim is None else reader.group.specs["cls"].dtype
    values = np.empty((len(images), dim), dtype)
    at_once = _READ_ROWS if reader.cls_dim is not None else max(1, _PATCH_BYTES // (4 * reader.patch_dim * _tokens_of(reader)))
    for start in range(0, len(images), at_once):
        chosen = images[start : start + at_once]
        values[start : start + at_once] = _read(reader, chosen * views)
        done = min(start + at_once, len(images))
        on_event({"event": "progress", "stage": f"read {reader.key}", "done": done, "total": len(images), "unit": "images"})
    if (bad := np.flatnonzero(~np.isfinite(values).all(axis=1))).size:
        raise CacheDamaged(
            f"the token of image {reader.views.dataset.row(int(images[bad[0]])).id} in {reader.key} is not finite; run `eupe-pipeline "
            "features verify`"
        )
    return values, images


def _tokens_of(reader: FeatureReader) -> int:
    return int(np.prod(reader.layout.token_shape))


def _read(reader: FeatureReader, rows: Int64s) -> NDArray[np.floating]:
    if reader.cls_dim is not None:
        return reader.read_cls(rows)
    return reader.mean_patch(rows, reader.read(rows))


def _moments(values_ND: NDArray[np.floating]) -> tuple[Float32s, Float32s]:
    moments = Moments(values_ND.shape[1])
    for start in range(0, len(values_ND), BLOCK):
        moments.update(values_ND[start : start + BLOCK])
    return moments.finish()


def _rewrite(values_ND: NDArray[np.floating], change: Callable[[Float32s], Float32s]) -> None:
    for start in range(0, len(values_ND), BLOCK):
        values_ND[start : start + BLOCK] = change(values_ND[start : start + BLOCK].astype(np.float32))
