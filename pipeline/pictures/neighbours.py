"""Find nearest neighbours of images by their cached class tokens: what a teacher, or a run as teacher, finds similar.

Exact cosine distance (1 − cos) between de-normalised class tokens of view 0, streamed in blocks of BLOCK rows, so that a set of any size
needs a few hundred megabytes at most. Images without tokens (failed, or in a shard that is still missing) are nobody's neighbours. Pictures
are the recorded crops, as the teacher saw them.
Axes: N images, Q queries, D channels, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.sources.decode import Pixels
from .seen_views import as_teacher_saw, shown_size

BLOCK = 16_384
PICTURE_PX = 128
_PAGE_QUERIES = 6

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One image as the teacher saw it: its id, label ("" without one), crop (square, HWC uint8), and distance to the query."""

    id: str
    label: str
    image: Pixels
    distance: float


@dataclass(frozen=True)
class Gallery:
    """A query and its neighbours, nearest first."""

    query: Seen
    neighbours: list[Seen]


def images_with_tokens(reader: FeatureReader) -> Int64s:
    """Return the images of a feature set that have tokens, in index order."""
    views = reader.views
    committed = np.flatnonzero(reader.group.committed_mask())
    spans = [np.arange(*views.shard_images(shard)) for shard in committed.tolist()]
    committed_images = np.concatenate(spans) if spans else np.zeros(0, np.int64)
    return np.setdiff1d(committed_images, reader.failed_rows() // views.views_per_image)


def class_tokens(reader: FeatureReader, images: Int64s) -> NDArray[np.float32]:
    """Return (n, D) unit class tokens of view 0, in the teacher's own space; raises BadInput when the teacher has none."""
    tokens = reader.statistics.denormalize_cls(reader.read_cls(images * reader.views.views_per_image).astype(np.float32))
    unit: NDArray[np.float32] = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
    return unit


def nearest(reader: FeatureReader, queries: Int64s, k: int, on_event: OnEvent) -> tuple[Int64s, NDArray[np.float32]]:
    """Return (images (Q, K), distances (Q, K)), nearest first, the query itself left out; raises BadInput for too few images."""
    images = images_with_tokens(reader)
    if len(images) <= k:
        raise BadInput(f"{reader.key} has tokens of {len(images)} images, too few for {k} neighbours; extract more, or ask for fewer")
    query_QD = class_tokens(reader, queries)
    best = np.zeros((len(queries), 0), np.int64)
    distance = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        distances = 1 - query_QD @ class_tokens(reader, block).T
        distances[queries[:, None] == block[None, :]] = np.inf
        distance = np.concatenate([distance, distances], 1)
        best = np.concatenate([best, np.broadcast_to(block, distances.shape)], 1)
        kept = np.argsort(distance, 1, kind="stable")[:, :k]
        distance, best = np.take_along_axis(distance, kept, 1), np.take_along_axis(best, kept, 1)
        on_event({"event": "progress", "stage": "neighbours", "done": start + len(block), "total": len(images), "unit": "images"})
    return best, distance


def query_images(reader: FeatureReader, ids: Sequence[str]) -> Int64s:
    """Return the images of the given ids; raises BadInput for an id that is unknown or has no tokens."""
    dataset = reader.views.dataset
    requested, index_of = set(ids), dict[str, int]()
    for start in range(0, len(dataset), BLOCK):
        block = dataset.ids(start, min(start + BLOCK, len(dataset)))
        index_of |= {image_id: start + n for n, image_id in enumerate(block) if image_id in requested}
    for image_id in ids:
        if image_id not in index_of:
            raise unknown_name(f"image in {dataset.key}:", image_id, dataset.ids(0, min(20, len(dataset))))
    images = np.array([index_of[image_id] for image_id in ids], np.int64)
    if without_tokens := np.setdiff1d(images, images_with_tokens(reader)).tolist():
        raise BadInput(f"image {dataset.row(without_tokens[0]).id} has no tokens in {reader.key}: it failed, or its shard is still missing")
    return images


def example_queries(reader: FeatureReader, count: int = _PAGE_QUERIES) -> Int64s:
    """Return images with tokens to start from."""
    return example_images(reader.views.dataset, images_with_tokens(reader), count)


def example_images(dataset: ImageDataset, images: Int64s, count: int) -> Int64s:
    """Return up to `count` of the images: the first of each label, or evenly spaced ones where there are no labels."""
    labels = dataset.labels()[images]
    if (labels >= 0).any():
        return np.array([images[np.flatnonzero(labels == label)[0]] for label in np.unique(labels[labels >= 0])[:count]], np.int64)
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)]


def seen(reader: FeatureReader, image: int, distance: float, size_px: int = PICTURE_PX) -> Seen:
    """Return one image as the teacher saw its view 0; raises CacheMismatch when its source is gone or was changed."""
    dataset, row = reader.views.dataset, reader.views.dataset.row(image)
    label = dataset.label_names[row.label] if row.label >= 0 else ""
    return Seen(row.id, label, as_teacher_saw(reader.views, image * reader.views.views_per_image, shown_size(reader, size_px)), distance)


def galleries(reader: FeatureReader, queries: Int64s, k: int, on_event: OnEvent) -> list[Gallery]:
    """Return a gallery of `k` neighbours a query; raises BadInput, and CacheMismatch when the source images are gone."""
    best, distance = nearest(reader, queries, k, on_event)
    return [
        Gallery(seen(reader, query, 0.0), [seen(reader, image, far) for image, far in zip(row.tolist(), away.tolist(), strict=True)])
        for query, row, away in zip(queries.tolist(), best, distance, strict=True)
    ]
