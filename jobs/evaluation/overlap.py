"""Find test images that were trained on, by the sha256 of their bytes, whatever the files, folders, tars or datasets are called.

Such an image is its own neighbour or was fitted, so its answer shows memory. Published test sets hold a few (CIFAR-10 and ImageNet do):
below a thousandth they cannot move a figure by what one decimal shows, so they are a warning and recorded; more are refused, unless the
user allows them. Limits: an image that was encoded again or cropped has other bytes and is not found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput
from ...storage.images.dataset import ImageDataset

MOST_SHARED = 0.001
_ROWS_AT_ONCE = 65_536
_NAMED = 3


def shared_indices(learnt: Iterable[bytes], tested: Sequence[bytes]) -> list[int]:
    """Return the indices into `tested` whose digest is among the `learnt` ones."""
    shared = set(tested).intersection(learnt)
    return [index for index, digest in enumerate(tested) if digest in shared]


def digests_of(dataset: ImageDataset, images: Sequence[int] | None = None) -> Iterator[bytes]:
    """Yield the sha256 of each image's bytes in index order; only of `images`, in rising order, when they are given."""
    chosen = None if images is None else np.asarray(images)
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(dataset))
        digests = dataset.sha256s(start, stop)
        if chosen is None:
            yield from digests
        else:
            yield from (digests[image - start] for image in chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)])


def check_overlap(
    learnt: Iterable[bytes], tested: Sequence[bytes], name_of: Callable[[int], str], *, where: str, allowed: bool,
    on_event: Callable[[dict[str, Any]], None],
) -> int:  # fmt: skip
    """Return how many tested images were learnt from; warns when there are any, raises `BadInput` above MOST_SHARED unless `allowed`.

    `name_of` gives the name of an index into `tested`; `where` says what was learnt from and tested on.
    """
    indices = shared_indices(learnt, tested)
    if not indices:
        return 0
    names = ", ".join(name_of(index) for index in indices[:_NAMED]) + (", …" if len(indices) > _NAMED else "")
    text = f"{len(indices):,} of {len(tested):,} test images are also learnt from, by their bytes ({names}): {where}"
    if not allowed and len(indices) > MOST_SHARED * len(tested):
        raise BadInput(f"{text}. Such a figure measures memory as well; test on other images, or say --allow-overlap")
    on_event({"event": "warning", "text": f"{text}; the figure measures memory as well"})
    return len(indices)
