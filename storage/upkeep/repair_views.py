"""Repair a damaged shard of recorded views: drawn again, it must equal its record to the byte."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheMismatch
from ..core.identity import ids_digest
from ..objects.damaged_files import read_or_flaw
from ..shards.commit import Record
from ..shards.shard_repair import RepairedShard, damaged_arrays, readable_record, repair_shard, valid_chunks
from ..shards.zarr_format import build_shard
from ..views.pixels import fill_pixels
from ..views.view_set import PIXELS, ViewSet
from ..views.view_spec import Views


def repair_views(views: ViewSet, shard: int, referenced_digests: Callable[[], set[str]]) -> RepairedShard:
    """Return what repairs a shard of views; `referenced_digests`: the digests of its record that feature sets were made from.

    Raise `CacheMismatch` where the images are not at hand, or are not decoded as they were.
    """
    group, current, ids = views.group, readable_record(views.group, shard), views.dataset.ids(*views.shard_images(shard))
    if current is not None and current.image_ids_sha256 != ids_digest(ids):
        current = None
    names = set(group.specs) if current is None else set(damaged_arrays(group, current))
    arrays, failed = _drawn(views, shard), {} if current is None else current.failed
    if names & {"pixel_digest", PIXELS}:
        try:
            failed = _with_pixels(views, shard, arrays)
        except CacheMismatch:
            if current is not None or not _use_stored_pixels(views, shard, arrays):
                raise
    rows = len(arrays["crop"])
    present = dict.fromkeys(arrays, np.ones(rows, np.bool_))
    if PIXELS in arrays:
        present[PIXELS] = np.repeat([image_id not in failed for image_id in ids], views.views_per_image)
    fresh = Record(views.digest, shard, rows, ids_digest(ids), {}, dict(failed))
    repaired = repair_shard(group, fresh, arrays, present, trust=current is not None)
    if current is not None and repaired.record_changes:
        raise CacheMismatch(f"shard {shard} of {group.prefix}: drawn anew it is not what was committed; restore the image library of then")
    if current is None and (referenced := referenced_digests()) and repaired.record.digest not in referenced:
        raise CacheMismatch(
            f"shard {shard} of {group.prefix} lost its record, and drawn anew it is not the one that feature sets were made from; "
            "restore the images and the image library of then"
        )
    return repaired


def _drawn(views: ViewSet, shard: int) -> dict[str, NDArray[Any]]:
    """Return the arrays that follow from the dataset's index alone; digests and pixels are zero."""
    drawn = views.draw_shard(shard)
    arrays: dict[str, NDArray[Any]] = {
        "crop": drawn.crop,
        "flip": drawn.flip[:, None],
        "photometric": drawn.photometric,
        "pixel_digest": drawn.digest,
    }
    if views.spec.pixels is not None:
        arrays[PIXELS] = np.zeros((len(drawn.crop), *views.spec.pixels.input.shape), np.uint8)
    return arrays


def _with_pixels(views: ViewSet, shard: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Fill in digests and pixels from the images; return those that cannot be decoded (id → reason)."""
    drawn = Views(arrays["crop"], arrays["flip"][:, 0], arrays["photometric"], arrays["pixel_digest"])
    outputs = [] if views.spec.pixels is None else [(views.spec.pixels.input, arrays[PIXELS])]
    failed = dict[str, str]()
    fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, outputs, drawn_now=True, failed=failed)
    return failed


def _use_stored_pixels(views: ViewSet, shard: int, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Fill in digests and pixels from the stored objects; return False when they are damaged, or an image may have failed.

    What a lost record said cannot be checked here, but by the digest that feature sets keep of it.
    """
    for name in arrays.keys() & {"pixel_digest", PIXELS}:
        spec, values = views.group.specs[name], arrays[name]
        data, _ = read_or_flaw(views.group.objects, f"{views.group.prefix}/{spec.key(shard)}")
        chunks = valid_chunks(spec, build_shard(spec, values, np.ones(len(values), np.bool_)).missing, data)
        stored = b"".join(chunk for chunk in chunks if chunk is not None)
        if len(stored) < values.nbytes:
            return False
        values[:] = np.frombuffer(stored[: values.nbytes], values.dtype).reshape(values.shape)
    return bool(arrays["pixel_digest"].any(axis=1).all())
