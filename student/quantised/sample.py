"""The pictures that int8 ranges are measured on, and others that the int8 student is compared on: recorded views, or a folder's pictures.

Views are those that the run was trained on, at the student's input and without distortions. Which ones follows from their number alone, so
that an export made twice is the same. Of a folder each whole picture is resized to the student's square, as its usage example does.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput, EupeError
from ...storage.sources.decode import BadImage, Pixels, decode_image
from ...storage.sources.source_items import SourceImage
from ...storage.sources.sources import list_files, open_source, walk
from ...storage.store import FeatureStore
from ...storage.views.input_size import size_hw
from ...storage.views.pixels import view_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input, resize

COMPARED = 64
"""Pictures that the int8 student is compared on; a fifth of those that there are, where there are few."""
LEAST = 10
"""Pictures that ranges are measured and compared on at least."""
_SEED = 0x18B17


@dataclass(frozen=True)
class Sample:
    """Pictures at the student's input, uint8 (n, size, size, 3)."""

    measured_BHWC: Tensor
    """For the ranges; none where a training has seen them."""
    compared_BHWC: Tensor
    """For the comparison; none of them was measured."""
    source: str
    """What they are, for people."""


def sample_of_views(store_url: str, keys: Sequence[str], count: int, wanted: Input) -> Sample:
    """Return views of the sets that trained a run, evenly from each; raises `BadInput` where the store has none of them."""
    store = FeatureStore.open(store_url)
    try:
        sets = [store.view_set(key) for key in keys]
    except EupeError as error:
        raise BadInput(f"{store_url} does not hold the views that the run was trained on: {error}; {_INSTEAD}") from error
    if not sets:
        raise BadInput(f"the run does not say which views it was trained on; {_INSTEAD}")
    share = -(-(count + COMPARED) // len(sets))
    pixels = np.concatenate([view_pixels(views, rows, wanted) for views in sets if len(rows := _good_rows(views, share))])
    return _split(pixels, count, f"views of {', '.join(views.key for views in sets)}")


_INSTEAD = "name the store of that training with --store, or give --calibrate FOLDER with pictures as the student will see them"


def _good_rows(views: ViewSet, count: int) -> NDArray[np.int64]:
    """Return `count` committed rows of images that could be decoded, in an order drawn from their numbers; all where there are fewer."""
    good, failed = list[int](), dict[int, dict[str, str]]()
    for row in drawn(views.rows, 4 * count):
        image, _ = divmod(row, views.views_per_image)
        shard = image // views.images_per_shard
        if shard not in failed:
            failed[shard] = views.failed_images(shard)
        if views.read_shard(shard) is not None and views.dataset.row(image).id not in failed[shard]:
            good.append(row)
        if len(good) == count:
            break
    return np.array(good, np.int64)


def drawn(total: int, count: int) -> list[int]:
    """Return `count` different numbers below `total`, or all of them, in a drawn order that is the same on every machine."""
    if total <= 4 * count:
        keys = np.asarray(np.random.Philox(key=_SEED).random_raw(total), np.uint64)
        return [int(n) for n in np.argsort(keys, kind="stable")[:count]]
    raw = np.asarray(np.random.Philox(key=_SEED).random_raw(2 * count), np.uint64) % np.uint64(total)
    return list(dict.fromkeys(raw.tolist()))[:count]


def sample_of_folder(folder: Path, count: int, wanted: Input) -> Sample:
    """Return pictures of a folder or an archive, upright and whole; raises `BadInput` where it holds fewer than it takes."""
    if not folder.exists():
        raise BadInput(f"--calibrate {folder} does not exist; give a folder with pictures as the student will see them")
    found = [resize(picture, False, *wanted) for picture in islice(_pictures(folder), count + COMPARED)]
    pixels = np.stack(found) if found else np.empty((0, *size_hw(wanted.size_px), 3), np.uint8)
    return _split(pixels, count, f"pictures of {folder.name}")


def _pictures(folder: Path) -> Iterator[Pixels]:
    """Yield what can be decoded, the files in a drawn order."""
    filesystem, root = open_source(str(folder))
    files = list_files(filesystem, root)
    for number in drawn(len(files), len(files)):
        for item in walk(filesystem, root, files[number]):
            with suppress(BadImage):
                if isinstance(item, SourceImage):
                    yield decode_image(item.data, where=item.path, orientation="upright")


def _split(pixels: Pixels, count: int, source: str) -> Sample:
    """Return the first pictures to compare on and the others to measure."""
    if len(pixels) < LEAST:
        raise BadInput(f"int8 ranges are measured on {LEAST} pictures at least, got {len(pixels)} {source}")
    compared = min(COMPARED, max(1, len(pixels) // 5))
    measured = torch.from_numpy(pixels[compared : compared + count])
    return Sample(measured, torch.from_numpy(pixels[:compared]), source)
