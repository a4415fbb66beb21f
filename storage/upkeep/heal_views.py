"""A damaged shard of recorded views made whole: drawn anew, it must come out as its record says, to the byte."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheMismatch
from ..core.identity import ids_digest
from ..objects.damaged_files import read_or_flaw
from ..shards.commit import Record
from ..shards.healing import Healed, damaged_arrays, heal, sound_chunks, standing_record
from ..shards.zarr_format import build_shard
from ..views.pixels import fill_pixels
from ..views.view_set import PIXELS, ViewSet
from ..views.view_spec import Views


def heal_views(views: ViewSet, shard: int, known: Callable[[], set[str]]) -> Healed:
    """What makes a shard of views whole; `known`: the digests of its record that feature sets were made from.

    Raises `CacheMismatch` where the images are not at hand, or are not decoded as they were.
    """
    group, standing, ids = views.group, standing_record(views.group, shard), views.dataset.ids(*views.shard_images(shard))
    if standing is not None and standing.image_ids_sha256 != ids_digest(ids):
        standing = None
    names = set(group.specs) if standing is None else set(damaged_arrays(group, standing))
    arrays, failed = _drawn(views, shard), {} if standing is None else standing.failed
    if names & {"pixel_digest", PIXELS}:
        try:
            failed = _with_pixels(views, shard, arrays)
        except CacheMismatch:
            if standing is not None or not _as_they_lie(views, shard, arrays):
                raise
    rows = len(arrays["crop"])
    present = dict.fromkeys(arrays, np.ones(rows, np.bool_))
    if PIXELS in arrays:
        present[PIXELS] = np.repeat([image_id not in failed for image_id in ids], views.views_per_image)
    fresh = Record(views.digest, shard, rows, ids_digest(ids), {}, dict(failed))
    healed = heal(group, fresh, arrays, present, trust=standing is not None)
    if standing is not None and healed.record_changes:
        raise CacheMismatch(f"shard {shard} of {group.prefix}: drawn anew it is not what was committed; restore the image library of then")
    if standing is None and (wanted := known()) and healed.record.digest not in wanted:
        raise CacheMismatch(
            f"shard {shard} of {group.prefix} lost its record, and drawn anew it is not the one that feature sets were made from; "
            "restore the images and the image library of then"
        )
    return healed


def _drawn(views: ViewSet, shard: int) -> dict[str, NDArray[Any]]:
    """What follows from the dataset's index alone; digests and pixels are zero."""
    drawn = views.draw_shard(shard)
    arrays: dict[str, NDArray[Any]] = {
        "crop": drawn.crop,
        "flip": drawn.flip[:, None],
        "photometric": drawn.photometric,
        "pixel_digest": drawn.digest,
    }
    if views.spec.pixels is not None:
        side = views.spec.pixels.size_px
        arrays[PIXELS] = np.zeros((len(drawn.crop), side, side, 3), np.uint8)
    return arrays


def _with_pixels(views: ViewSet, shard: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Fill in digests and pixels from the images; returns those that cannot be decoded (id → reason)."""
    drawn = Views(arrays["crop"], arrays["flip"][:, 0], arrays["photometric"], arrays["pixel_digest"])
    outputs = [] if views.spec.pixels is None else [(views.spec.pixels.input, arrays[PIXELS])]
    failed = dict[str, str]()
    fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, outputs, drawn_now=True, failed=failed)
    return failed


def _as_they_lie(views: ViewSet, shard: int, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Fill in digests and pixels from the objects that lie there; False when they are damaged, or an image may have failed.

    What a lost record said cannot be checked here, but by the digest that feature sets keep of it.
    """
    for name in arrays.keys() & {"pixel_digest", PIXELS}:
        spec, values = views.group.specs[name], arrays[name]
        data, _ = read_or_flaw(views.group.objects, f"{views.group.prefix}/{spec.key(shard)}")
        chunks = sound_chunks(spec, build_shard(spec, values, np.ones(len(values), np.bool_)).missing, data)
        whole = b"".join(chunk for chunk in chunks if chunk is not None)
        if len(whole) < values.nbytes:
            return False
        values[:] = np.frombuffer(whole[: values.nbytes], values.dtype).reshape(values.shape)
    return bool(arrays["pixel_digest"].any(axis=1).all())
