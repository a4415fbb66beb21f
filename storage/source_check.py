"""Is the source still what was indexed? Walk it again, hash every image, compare with the index (FAULTS 15).

Each read of an image checks that image's sha256 anyway, so training can never see changed bytes; this finds changes before the first step,
and also those that reading cannot notice: images added, or files reordered. It costs one reading of the source (2 GB/s of hashing a core).
"""

from collections.abc import Callable
from itertools import islice

from .dataset import ImageDataset
from .errors import BadInput, CacheMismatch
from .indexing import Event, examined
from .sources import Skipped

_SHOWN = 5
_BLOCK = 4096


def source_differences(dataset: ImageDataset, on_event: Callable[[Event], None] = lambda event: None) -> list[str]:
    """One line for each image that was replaced, removed, added or moved to another place in the order since it was indexed."""
    indexed: dict[str, bytes] = {}
    order: list[str] = []
    for start in range(0, len(dataset), _BLOCK):
        stop = min(start + _BLOCK, len(dataset))
        names = dataset.ids(start, stop)
        indexed |= zip(names, dataset.sha256s(start, stop), strict=True)
        order += names
    found: list[str] = []
    lines: list[str] = []
    for results, done, total in examined(dataset.source):
        for item, _ in results:
            if isinstance(item, Skipped):
                continue
            found.append(item.id)
            if item.id not in indexed:
                lines.append(f"{item.id} was added")
            elif indexed[item.id] != item.sha256:
                lines.append(f"{item.id} has other bytes")
        on_event({"event": "progress", "stage": f"verify {dataset.name}", "done": done, "total": total, "unit": "files"})
    there = set(found)
    lines += [f"{image_id} is gone" for image_id in order if image_id not in there]
    if not lines and found != order:
        lines.append("the images are in another order")
    return lines


def verify_source(dataset: ImageDataset, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Raise `CacheMismatch` naming the first differences when the source is not what was indexed, or is gone."""
    try:
        lines = source_differences(dataset, on_event)
    except BadInput as error:
        lines = [str(error)]
    if lines:
        named = "; ".join(islice(lines, _SHOWN)) + ("; …" if len(lines) > _SHOWN else "")
        raise CacheMismatch(
            f"the source of {dataset.key} has changed since it was indexed ({len(lines)} differences: {named}); "
            f"restore it, or index {dataset.source} again and extract for the new dataset"
        )
