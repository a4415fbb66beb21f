"""Test images that were learnt from: found by the sha256 of their bytes, whatever the files, folders, tars or datasets are called.

Such an image is its own neighbour or was fitted, so its answer shows memory. Published test sets hold a few (CIFAR-10 and ImageNet do):
below a thousandth they cannot move a figure by what one decimal shows, so they are said and recorded; more are refused, unless the user
allows them. Limits: an image that was encoded again or cropped has other bytes and is not found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ...storage.images.dataset import ImageDataset

MOST_SHARED = 0.001
_ROWS_AT_ONCE = 65_536
_NAMED = 3


def shared_places(learnt: Iterable[bytes], tested: Sequence[bytes]) -> list[int]:
    """Places in `tested` whose digest is among the `learnt` ones."""
    shared = set(tested).intersection(learnt)
    return [place for place, digest in enumerate(tested) if digest in shared]


def digests_of(dataset: ImageDataset, images: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[bytes]:
    """sha256 of each image's bytes, in index order; of some images, in rising order, when they are given."""
    wanted = None if images is None else np.asarray(images)
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(dataset))
        found = dataset.sha256s(start, stop)
        if wanted is None:
            yield from found
        else:
            yield from (found[image - start] for image in wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)])


def check_overlap(
    learnt: Iterable[bytes], tested: Sequence[bytes], name_of: Callable[[int], str], *, where: str, allowed: bool,
    on_event: Callable[[dict[str, Any]], None],
) -> int:  # fmt: skip
    """How many tested images were learnt from; said when there are any, `BadInput` above MOST_SHARED unless they are `allowed`.

    `name_of` gives the name of a place in `tested`, `where` says what was learnt from and tested on.
    """
    places = shared_places(learnt, tested)
    if not places:
        return 0
    names = ", ".join(name_of(place) for place in places[:_NAMED]) + (", …" if len(places) > _NAMED else "")
    text = f"{len(places):,} of {len(tested):,} test images are also learnt from, by their bytes ({names}): {where}"
    if not allowed and len(places) > MOST_SHARED * len(tested):
        raise BadInput(f"{text}. Such a figure measures memory as well; test on other images, or say --allow-overlap")
    on_event({"event": "warning", "text": f"{text}; the figure measures memory as well"})
    return len(places)
