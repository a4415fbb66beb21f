"""Reconstruct lost identities by guessing: parts of an identity are stored elsewhere, and the digest in the folder's name verifies a guess.

A feature set's identity follows from the statistics stored before it and from the shapes in its zarr.json; an identity of views from shapes
and from the defaults of `extract-features`. A guess that is wrong in one value has another digest, so a wrong identity cannot pass.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..core.choices import PHOTOMETRIC_MODES
from ..core.errors import EupeError
from ..core.identity import digest, short
from ..features.layout import FeatureLayout
from ..images.dataset import ImageDataset
from ..objects.content_addressed import MAX_IDENTITY_BYTES, pack_identity
from ..objects.damaged_files import read_or_flaw
from ..objects.objects import Objects
from ..views.input_size import as_size
from ..views.renderers import PILLOW, fast
from ..views.view_set import views_identity
from ..views.view_spec import VIEW_KINDS, StoredPixels, ViewSpec

_SEEDS = 1024
_CENTRE_FRACTIONS = (1.0, 0.875)


def lost_features_identity(objects: Objects, key: str, kept: Iterable[tuple[dict[str, Any], Any]]) -> bytes | None:
    """Return `identity.json` of a feature set from stored statistics (what they were measured on, the statistics) and array shapes."""
    arrays = {name: _array(objects, f"features/{key}/{name}") for name in ("patch", "cls")}
    if not arrays["patch"]:
        return None
    for measured_on, statistics in kept:
        try:
            sample = {**statistics.described(), **measured_on["sample"]}
            for layout in _layouts(measured_on["teacher"], arrays["patch"], tuple(statistics.layers)):
                identity = {
                    "format": 1, "teacher": measured_on["teacher"], "views": measured_on["views"], "statistics": sample,
                    "layout": layout.identity(),
                }  # fmt: skip
                if short(digest(identity)) == key.rpartition("@")[2]:
                    return pack_identity("features", identity)
        except (KeyError, TypeError, ValueError):
            continue
    return None


def _layouts(teacher: dict[str, Any], patch: dict[str, Any], layers: tuple[int, ...]) -> Iterator[FeatureLayout]:
    shape, codec, teacher_grid = patch["shape"], patch["attributes"]["codec"], tuple(teacher["grid"])
    if len(shape) == 3:
        for in_image in (False, True):
            yield FeatureLayout(teacher["cls_dim"], teacher["patch_dim"], teacher_grid, codec, shape[1], None, layers, in_image)
        return
    grid = (shape[1], shape[2])
    yield FeatureLayout(teacher["cls_dim"], teacher["patch_dim"], grid, codec, None, None if grid == teacher_grid else teacher_grid, layers)


def lost_views_identity(objects: Objects, key: str, datasets: Iterable[ImageDataset]) -> bytes | None:
    """Return `identity.json` of a view set, if it was drawn with a small seed and the commands' default values."""
    crop, pixels = _array(objects, f"views/{key}/crop"), _array(objects, f"views/{key}/pixels")
    try:
        rows, shard_rows = crop["shape"][0], crop["chunk_grid"]["configuration"]["chunk_shape"][0]
        stored = StoredPixels(as_size(pixels["shape"][1:3])) if pixels else None
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    renderers = (fast(), PILLOW)
    for dataset in (read for known in datasets for read in dict.fromkeys((known, known.read_as("stored")))):  # evaluations read as stored
        views_per_image, rest = divmod(rows, len(dataset))
        if rest or not views_per_image or shard_rows % views_per_image:
            continue
        for spec in _specs(views_per_image, stored):
            for renderer in renderers:
                identity = views_identity(dataset, spec, shard_rows // views_per_image, renderer)
                if short(digest(identity)) == key.rpartition("@")[2]:
                    return pack_identity("views", identity)
    return None


def _specs(views_per_image: int, stored: StoredPixels | None) -> Iterator[ViewSpec]:
    kinds = VIEW_KINDS.values()
    if views_per_image == 1:
        deterministic = [kind.name for kind in kinds if not kind.is_random]
        yield from (ViewSpec(kind, crop_fraction=fraction, pixels=stored) for kind in deterministic for fraction in _CENTRE_FRACTIONS)
    for kind, photometric in itertools.product([kind.name for kind in kinds if kind.is_random], PHOTOMETRIC_MODES):
        first = ViewSpec(kind, views_per_image, photometric=photometric, pixels=stored)
        for seed in itertools.islice(itertools.count(), _SEEDS):
            yield replace(first, seed=seed)


def _array(objects: Objects, prefix: str) -> dict[str, Any]:
    """Return an array's zarr.json as far as it can be read, {} where it cannot."""
    data, flaw = read_or_flaw(objects, f"{prefix}/zarr.json", MAX_IDENTITY_BYTES)
    try:
        parsed = {} if data is None or flaw else json.loads(data)
    except (ValueError, RecursionError, EupeError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
