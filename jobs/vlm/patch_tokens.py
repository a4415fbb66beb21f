"""Patch tokens of training pictures: encoded once into the store and read in every stage and epoch, or computed at each step.

A picture is seen as a square, its centre or the whole of it with padding, and that is a view like any other: the folder of pictures is a
dataset of the store, its squares a view set, their tokens a feature set in the encoder's own space (mean 0, deviation 1), named by content.
So both stages share what they have in common, every language model and recipe on the same encoder finds the tokens, and a stopped encoding
goes on at its first missing shard. A complete set of the same encoder over the same centre views that `extract-features` made is taken
instead. Only shards with a picture that is used are computed. Axes: P pictures, N patch tokens, D channels.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.choices import SquareView, VlmTokens
from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent
from ...storage.core.urls import is_url
from ...storage.features.features import FeatureLayout, FeatureReader, features_identity
from ...storage.features.statistics import Statistics
from ...storage.images.dataset import ImageDataset
from ...storage.sources.decode import Pixels
from ...storage.store import FeatureStore
from ...storage.views.pixels import center_views
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import ViewSpec, cut, draw, fit
from ...student.data.decode_tokens import decode_patch
from ...teachers.registry.spec import TeacherSpec
from ...teachers.registry.teacher import Teacher
from ..evaluation.models import Model
from ..evaluation.pooled_features import Encoded, fill_shard

IMAGES_PER_SHARD = 64
_SHOWN = 3


def square_views(spec: TeacherSpec, view: SquareView) -> ViewSpec:
    """Return how a picture becomes the encoder's square input; padding has the encoder's mean colour, as in LLaVA-1.5."""
    if view == "center":
        return center_views(spec.preprocessing.input)
    prep = spec.preprocessing
    levels = [min(255, max(0, int(level * prep.pixel_scale))) for level in prep.mean]
    red, green, blue = levels if prep.channel_order == "rgb" else levels[::-1]
    return ViewSpec(kind="letterbox", flip_probability=0.0, pad_position="center", pad_rgb=(red, green, blue))


def square(picture: Pixels, spec: TeacherSpec, view: SquareView) -> Pixels:
    """Return the encoder's input (S, S, 3) of a picture that no view is recorded of."""
    views = square_views(spec, view)
    crop = draw(views, [""], np.array([picture.shape[:2]], np.int32)).crop[0]
    return fit(cut(picture, crop), False, spec.preprocessing.input, views.letterbox)


def encode(teacher: Teacher, pixels_PHWC: NDArray[np.uint8]) -> Tensor:
    """Return patch tokens (P, N, D) fp32 on the encoder's device; raise `BadInput` for values that are not finite."""
    patch_PND: Tensor = teacher(torch.from_numpy(pixels_PHWC)).patch_BHWD.flatten(1, 2)
    if not bool(torch.isfinite(patch_PND).all()):
        raise BadInput(f"{teacher.spec.name} gives tokens that are not finite, of which nothing can be learnt; look at its weights")
    return patch_PND


@dataclass(frozen=True)
class StagePictures:
    """The pictures of one stage in a dataset of the store."""

    dataset: ImageDataset
    rows: dict[str, int]
    """Number of each used picture in the dataset, by its path in the conversations."""
    model: Model
    view: SquareView

    @classmethod
    def find(cls, dataset: ImageDataset, names: Sequence[str], model: Model, view: SquareView) -> "StagePictures":
        """Find pictures by their paths below the dataset's folder; raises `BadInput` with the number of those that it left out."""
        numbers = {name: number for number, name in enumerate(dataset.ids(0, len(dataset)))}
        wanted = {name: Path(name).as_posix() for name in names}
        if unusable := [name for name, path in wanted.items() if path not in numbers]:
            shown = ", ".join(unusable[:_SHOWN]) + (", …" if len(unusable) > _SHOWN else "")
            raise BadInput(
                f"{len(unusable):,} of {len(names):,} pictures cannot be decoded or came after {dataset.key} was indexed: {shown}; leave "
                "them out of the conversations, or index the folder again"
            )
        return cls(dataset, {name: numbers[path] for name, path in wanted.items()}, model, view)

    def sha256s(self) -> list[str]:
        """Return the digest of each used picture's bytes, in the order of the conversations."""
        digests = self.dataset.sha256s(0, len(self.dataset))
        return [digests[row].hex() for row in self.rows.values()]

    def describe(self, tokens: VlmTokens, existing: FeatureReader | None) -> dict[str, Any]:
        """Return what decides the tokens besides the encoder."""
        kept = {"features": existing.key, "codec": existing.codec} if existing is not None else {"codec": tokens}
        return {"view": square_views(self.model.spec, self.view).identity(), **kept}

    def bytes_to_write(self, reader: FeatureReader) -> int:
        """Return the bytes of the used shards that a feature set still lacks."""
        used = {int(row) // IMAGES_PER_SHARD for row in self.rows.values()}
        missing = used.intersection(reader.missing_shards())
        images = sum(len(range(*reader.views.shard_images(shard))) for shard in missing)
        return images * sum(int(np.prod(spec.shape[1:], dtype=np.int64)) * spec.dtype.itemsize for spec in reader.group.specs.values())


def existing_set(store: FeatureStore, pictures: StagePictures, codec: str) -> FeatureReader | None:
    """Return a complete set of this encoder over these very views that an extraction made, None without one; the best codec first.

    Where fp32 was asked for, nothing coarser is taken.
    """
    wanted, found = square_views(pictures.model.spec, pictures.view).identity(), list[FeatureReader]()
    for key in store.list_features():
        identity = store.features_identity(key)
        if identity["teacher"] != pictures.model.identity or "raw" in identity["statistics"]:
            continue
        reader = store.features(key)
        layout, views = reader.layout, reader.views
        plain = layout.tokens_per_view is None and layout.resampled_from is None and "pooled" not in identity["statistics"]
        plain = plain and not reader.statistics.normalisation.with_matrix and codec in ("fp16", reader.codec)
        if plain and reader.complete and views.dataset.digest == pictures.dataset.digest and views.spec.identity() == wanted:
            found.append(reader)
    return min(found, key=lambda reader: (-np.dtype(reader.group.specs["patch"].dtype).itemsize, reader.key), default=None)


def own_set(store: FeatureStore, pictures: StagePictures, codec: str) -> FeatureReader:
    """Return this evaluation's feature set over the pictures, made when it is not there; its shards may be missing."""
    spec = pictures.model.spec
    views = ViewSet.create(store.objects, pictures.dataset, square_views(spec, pictures.view), IMAGES_PER_SHARD)
    statistics = Statistics.from_arrays(
        {"patch_mean": np.zeros(spec.patch_dim, np.float32), "patch_std": np.ones(spec.patch_dim, np.float32)}, 0
    )
    layout = FeatureLayout(None, spec.patch_dim, spec.grid, codec)
    identity = features_identity(spec.identity(), views, statistics, {"raw": "patch tokens as the encoder gives them"}, layout)
    return FeatureReader.create(store.objects, f"{spec.name}-patches", views, identity, statistics)


def fill(reader: FeatureReader, pictures: StagePictures, device: str, batch_size: int, on_event: OnEvent) -> None:
    """Encode the used shards that are missing; says the bytes before, and raises `BadInput` where the disk is too small for them."""
    used = {int(row) // IMAGES_PER_SHARD for row in pictures.rows.values()}
    missing = sorted(used.intersection(reader.missing_shards()))
    if not missing:
        return
    needed = pictures.bytes_to_write(reader)
    on_event({"event": "note", "text": f"patch tokens of {len(pictures.rows):,} pictures: {needed:,} bytes are written to {reader.key}"})
    refuse_full_disk(pictures, reader, needed)
    teacher, started, done = pictures.model.load(device), time.perf_counter(), 0
    left = sum(len(range(*reader.views.shard_images(shard))) for shard in missing)

    def encoded(pixels: NDArray[np.uint8]) -> Encoded:
        return None, encode(teacher, pixels).cpu().numpy().reshape(len(pixels), *teacher.spec.grid, -1)

    for shard in missing:
        done += fill_shard(reader, shard, teacher.spec.preprocessing.input, encoded, batch_size)
        rate = done / (time.perf_counter() - started)
        on_event(
            {"event": "progress", "stage": f"patch tokens of {pictures.dataset.name}", "done": done, "total": left, "unit": "images",
             "rate": rate, "seconds_left": (left - done) / rate}
        )  # fmt: skip


def refuse_full_disk(pictures: StagePictures, reader: FeatureReader, needed: int) -> None:
    """Raise `BadInput` where a local store has not so many bytes free."""
    url = reader.store_url
    if is_url(url) or not Path(url).exists():
        return
    free = shutil.disk_usage(url).free
    if free < needed:
        raise BadInput(
            f"the patch tokens of {len(pictures.rows):,} pictures take {needed:,} bytes and {url} has {free:,} free; name another --store, "
            "or say --tokens live, which computes them in every step"
        )


class CachedTokens:
    """Reads tokens of pictures from a feature set, in the encoder's own space."""

    def __init__(self, reader: FeatureReader, pictures: StagePictures, device: torch.device) -> None:
        self.reader, self.rows, self.device = reader, pictures.rows, device
        failed = set(reader.failed_rows().tolist())
        if lost := [name for name, row in self.rows.items() if row in failed]:
            shown = ", ".join(lost[:_SHOWN]) + (", …" if len(lost) > _SHOWN else "")
            raise CacheMismatch(
                f"{reader.key} has no tokens of {len(lost):,} pictures, which could not be decoded: {shown}; leave them out"
            )
        statistics = reader.statistics
        self.mean_D, self.std_D = (torch.from_numpy(values).to(device) for values in (statistics.patch_mean, statistics.patch_std))

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return tokens (P, N, D) fp32 on the device."""
        tokens = self.reader.read(np.array([self.rows[name] for name in names], np.int64))
        codes = torch.from_numpy(tokens.patch).to(self.device)
        scale = None if tokens.scale is None else torch.from_numpy(tokens.scale).to(self.device)
        return (decode_patch(codes, scale, self.reader.codec) * self.std_D + self.mean_D).flatten(1, 2)


class LiveTokens:
    """Computes tokens of pictures."""

    def __init__(self, pictures: StagePictures, device: torch.device, batch_size: int) -> None:
        self.pictures, self.batch_size, self.teacher = pictures, batch_size, pictures.model.load(str(device))

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return tokens (P, N, D) fp32 on the device."""
        read = (self.pictures.dataset.read_image(self.pictures.rows[name]) for name in names)
        pixels = np.stack([square(picture, self.teacher.spec, self.pictures.view) for picture in read])
        return torch.cat([encode(self.teacher, pixels[at : at + self.batch_size]) for at in range(0, len(pixels), self.batch_size)])
