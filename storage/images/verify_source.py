"""Is the source still what was indexed? Walk it again, hash every image, compare with the index (FAULTS 15).

Each read of an image checks that image's sha256 anyway, so training can never see changed bytes; this finds changes before the first step,
and also those that reading cannot notice: images added, or files reordered. It costs one reading of the source (2 GB/s of hashing a core).
"""

from collections.abc import Iterator
from itertools import islice, zip_longest

from ..core.errors import BadInput, CacheMismatch
from ..core.events import OnEvent, ignore_event
from .dataset import ImageDataset, ImageRow
from .indexing import examined

_SHOWN = 5
_BLOCK = 4096
Image = tuple[str, bytes]  # id and sha256


def source_differences(dataset: ImageDataset, on_event: OnEvent = ignore_event, source: str | None = None) -> list[str]:
    """One line for each image that was replaced, removed, added or moved to another place in the order since it was indexed.

    An index that does not say whether it took the targets of dense tasks for images is unchanged when either reading fits it.
    """
    place = source or dataset.source
    lines = _differences(dataset, _walked(dataset, place, dataset.has_targets, on_event))
    if lines and dataset.has_targets and not _differences(dataset, _walked(dataset, place, False, on_event)):
        return []
    return lines


def _differences(dataset: ImageDataset, walked: Iterator[Image]) -> list[str]:
    """Index and source are walked side by side; from the first difference on, both are held in memory."""
    indexed = _indexed(dataset)
    for there, here in zip_longest(indexed, walked):
        if there != here:
            return _compared([one for one in (there, *indexed) if one], [one for one in (here, *walked) if one])
    return []


def _indexed(dataset: ImageDataset) -> Iterator[Image]:
    for start in range(0, len(dataset), _BLOCK):
        stop = min(start + _BLOCK, len(dataset))
        yield from zip(dataset.ids(start, stop), dataset.sha256s(start, stop), strict=True)


def _walked(dataset: ImageDataset, source: str, dense_targets: bool, on_event: OnEvent) -> Iterator[Image]:
    for results, done, total in examined(source, dense_targets):
        yield from ((one.item.id, one.item.sha256) for one in results if isinstance(one.item, ImageRow))
        on_event({"event": "progress", "stage": f"verify {dataset.name}", "done": done, "total": total, "unit": "files"})


def _compared(there: list[Image], here: list[Image]) -> list[str]:
    indexed, found = dict(there), dict(here)
    lines = [
        f"{image_id} was added" if image_id not in indexed else f"{image_id} has other bytes"
        for image_id, sha256 in here
        if indexed.get(image_id) != sha256
    ]
    lines += [f"{image_id} is gone" for image_id in indexed if image_id not in found]
    return lines or ["the images are in another order"]


def verify_source(dataset: ImageDataset, on_event: OnEvent = ignore_event, source: str | None = None) -> None:
    """Raise `CacheMismatch` naming the first differences when the source is not what was indexed, or is gone."""
    place = source or dataset.source
    try:
        lines = source_differences(dataset, on_event, place)
    except BadInput as error:
        lines = [str(error)]
    if lines:
        named = "; ".join(islice(lines, _SHOWN)) + ("; …" if len(lines) > _SHOWN else "")
        raise CacheMismatch(
            f"the source of {dataset.key} has changed since it was indexed ({len(lines)} differences: {named}); "
            f"restore it, or index {place} again and extract for the new dataset"
        )
