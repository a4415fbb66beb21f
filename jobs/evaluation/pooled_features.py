"""Class token and mean patch token of every image, through the store: computed once, resumable, checked like any feature set.

A pooled set is a feature set over centre views with a grid of 1 × 1: its only patch token is the mean of the image's patch tokens, in the
teacher's own space (statistics of mean 0 and deviation 1) and in fp32, so that cached and fresh evaluations give equal numbers. ImageNet's
1.28 million images take 8 GB for a ViT-B instead of the terabyte of their dense tokens. A killed extraction goes on at its first missing
shard. One process, one device; decoding runs beside the forward passes.

An image that cannot be decoded has no tokens, and a figure of the others is another one than was asked for. So above the share of broken
images that `index` allows (MAX_BAD_SHARE) the computation stops at the shard that passes it; below it the image is counted (`Failures`).
Images that the user has removed from the source are expected to be gone and never count.
"""

import shlex
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.core.events import OnEvent
from ...storage.earlier_sets import EarlierSets
from ...storage.features.features import FeatureLayout, FeatureReader, features_identity
from ...storage.features.statistics import Statistics
from ...storage.images.dataset import ImageDataset
from ...storage.images.indexing import MAX_BAD_SHARE
from ...storage.images.versions import REMOVED
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.objects.probes import check_writable
from ...storage.store import FeatureStore
from ...storage.views.pixels import center_views
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input
from ...teachers.registry.teacher import Teacher
from ..extraction.rendering import FreshViews, RenderedShard
from .models import Model

IMAGES_PER_SHARD = 512
_RENDER_THREADS = 2
_NAMED = 3


class Failures(NamedTuple):
    """Images without tokens: how many of how many, and why the first few have none."""

    number: int
    images: int
    first: Mapping[str, str]
    """Image id → reason."""

    @classmethod
    def of(cls, reasons: Mapping[str, str], images: int) -> "Failures":
        """Return those of images whose reasons are all known."""
        return cls(len(reasons), images, dict(list(reasons.items())[:_NAMED]))

    @classmethod
    def among(cls, reader: FeatureReader, images_N: NDArray[np.int64]) -> "Failures":
        """Return those of some images that a feature set has no tokens of."""
        views, first = reader.views, dict[str, str]()
        failed = np.intersect1d(images_N, reader.failed_rows() // views.views_per_image)
        for image in failed[:_NAMED].tolist():
            record, image_id = reader.group.record(image // views.images_per_shard), views.dataset.row(image).id
            first[image_id] = "no reason is recorded" if record is None else record.failed.get(image_id, REMOVED)
        return cls(len(failed), len(images_N), first)

    def told(self, dataset: ImageDataset) -> str:
        """Return how many images of a dataset there are, and in brackets the first ones with their reasons."""
        whole = {image_id: f"image {image_id} of {dataset.key}: " for image_id in self.first}  # with which many reasons begin
        listed = "; ".join(f"{image_id}: {reason.removeprefix(whole[image_id])}" for image_id, reason in self.first.items())
        return f"{self.number:,} of {self.images:,} images of {dataset.key} ({listed}{'; …' if self.number > len(self.first) else ''})"

    def refuse_many(self, dataset: ImageDataset, store: FeatureStore, max_bad_share: float) -> None:
        """Raise `BadInput` for more than a share of all, with the commands that lead on."""
        if self.number <= max_bad_share * self.images:
            return
        stored = " --orientation stored" if dataset.indexed == "stored" else ""
        index = f"eupe-pipeline index {shlex.quote(dataset.source)} --store {shlex.quote(store.url)} --name {dataset.name}{stored}"
        raise BadInput(
            f"{self.told(dataset)} cannot be decoded, more than the limit of {max_bad_share:.2%}; a figure would be of the others alone. "
            f"Remove these files and run `{index} --allow-removed`, after which they are not counted; or mend them, index "
            "them under another --name and evaluate that"
        )


def present_images(dataset: ImageDataset) -> NDArray[np.int64]:
    """Return the images that the source still has, in index order."""
    return np.setdiff1d(np.arange(len(dataset)), dataset.removed())


def pooled_features(
    store: FeatureStore, dataset: ImageDataset, model: Model, *, device: str, crop_fraction: float, batch_size: int, on_event: OnEvent,
    max_bad_share: float = MAX_BAD_SHARE,
) -> FeatureReader:  # fmt: skip
    """Return the complete pooled set of a model over a dataset; computes what is missing, in memory where the store is read-only.

    Raises `BadInput` where more than `max_bad_share` of the images cannot be decoded, as soon as it is known; what was committed stays.
    """
    try:
        reader = _open_set(store, dataset, model, crop_fraction)
        if reader.missing_shards():
            check_writable(store.objects)
            EarlierSets.of(store, reader.views, [reader], on_event).take_over([reader], on_event)
    except StoreUnavailable as error:
        on_event({"event": "warning", "text": f"features of {dataset.name} are not kept for the next evaluation: {error}"})
        reader = _open_set(FeatureStore(DryRunObjects(store.objects)), dataset, model, crop_fraction)
    missing, views, present = reader.missing_shards(), reader.views, present_images(dataset)
    known = Failures.among(reader, present)
    known.refuse_many(dataset, store, max_bad_share)
    if not missing:
        return reader
    failed = known.number
    teacher, started, done = model.load(device), time.perf_counter(), 0
    left = sum(len(range(*views.shard_images(shard))) for shard in missing)
    for shard in missing:
        done += fill_shard(reader, shard, teacher.spec.preprocessing.input, lambda pixels: pooled(teacher, pixels), batch_size)
        record = reader.group.record(shard)
        failed += 0 if record is None else sum(reason != REMOVED for reason in record.failed.values())
        if failed > max_bad_share * len(present):
            Failures.among(reader, present).refuse_many(dataset, store, max_bad_share)
        rate = done / (time.perf_counter() - started)
        on_event(
            {"event": "progress", "stage": f"features of {dataset.name}", "done": done, "total": left, "unit": "images", "rate": rate,
             "seconds_left": (left - done) / rate}
        )  # fmt: skip
    return reader


def _open_set(store: FeatureStore, dataset: ImageDataset, model: Model, crop_fraction: float) -> FeatureReader:
    spec = center_views(model.spec.preprocessing.input, crop_fraction)
    views = ViewSet.create(store.objects, dataset, spec, IMAGES_PER_SHARD)
    return _create(store, views, model)


def _create(store: FeatureStore, views: ViewSet, model: Model) -> FeatureReader:
    spec = model.spec
    dims = {"patch": spec.patch_dim} if spec.cls_dim is None else {"patch": spec.patch_dim, "cls": spec.cls_dim}
    means = {f"{kind}_mean": np.zeros(dim, np.float32) for kind, dim in dims.items()}
    statistics = Statistics.from_arrays({**means, **{f"{kind}_std": np.ones(dim, np.float32) for kind, dim in dims.items()}}, 0)
    layout = FeatureLayout(spec.cls_dim, spec.patch_dim, (1, 1), "fp32")
    identity = features_identity(spec.identity(), views, statistics, {"pooled": "mean of patch tokens"}, layout)
    return FeatureReader.create(store.objects, f"{spec.name}-pooled", views, identity, statistics)


Encoded = tuple[NDArray[np.float32] | None, NDArray[np.float32]]
"""Class tokens (B, D), None without any, and patch tokens (B, H, W, D) of some views."""


def fill_shard(
    reader: FeatureReader, shard: int, model_input: Input, encode: Callable[[NDArray[np.uint8]], Encoded], batch_size: int
) -> int:
    """Compute and commit one shard, its views included where they are not there; returns its number of images."""
    views = reader.views
    committed = views.read_shard(shard)
    drawn = views.draw_shard(shard) if committed is None else committed
    count = len(drawn.crop)
    tokens, failed = reader.empty(count), dict[str, str]()
    for array in (tokens.patch, tokens.scale, tokens.cls):
        if array is not None:
            array[:] = 0
    fresh = FreshViews.of(views, count) if committed is None else None
    with RenderedShard(views, shard, drawn, [model_input], batch_size, _RENDER_THREADS, fresh) as batches:
        for batch in batches:
            encoded = reader.encode(*encode(batch.pixels[model_input]))
            for array, values in ((tokens.patch, encoded.patch), (tokens.scale, encoded.scale), (tokens.cls, encoded.cls)):
                if array is not None and values is not None:
                    array[batch.rows] = values
            failed |= batch.failed
    if committed is None:
        views.commit_shard(shard, drawn, failed)
    record = views.group.record(shard)
    assert record is not None
    reader.commit_shard(shard, tokens, failed, record.digest)
    return count


def pooled(teacher: Teacher, pixels_BHWC: NDArray[np.uint8]) -> Encoded:
    """Compute class tokens (B, D), None without any, and mean patch tokens (B, 1, 1, D) of some pixels, fp32."""
    cls_BD, patch_BHWD = teacher(torch.from_numpy(pixels_BHWC))
    return None if cls_BD is None else cls_BD.cpu().numpy(), patch_BHWD.mean(dim=(1, 2), keepdim=True).cpu().numpy()
