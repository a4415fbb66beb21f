"""Check whether a source still is what was indexed: walk it again, hash every image, compare with the index.

Each read of an image checks its sha256 anyway, so training never sees changed bytes; this finds changes before the first step, and those
that reading cannot notice: images added, or files reordered. It costs one read of the source (hashing runs at 2 GB/s a core).
"""

from collections.abc import Iterator
from itertools import islice, zip_longest

from ..core.errors import BadInput, CacheMismatch
from ..core.events import OnEvent, ignore_event
from .dataset import ImageDataset, ImageRow
from .indexing import walk_source

_SHOWN = 5
_BLOCK = 4096
Image = tuple[str, bytes]  # id and sha256


def source_differences(dataset: ImageDataset, on_event: OnEvent = ignore_event, source: str | None = None) -> list[str]:
    """Return a line for each image that was replaced, removed, added or moved in the order since it was indexed.

    An index that does not say whether it took the targets of dense tasks for images is unchanged when either reading fits it.
    """
    location = source or dataset.source
    lines = _differences(dataset, _walked(dataset, location, dataset.has_targets, on_event))
    if lines and dataset.has_targets and not _differences(dataset, _walked(dataset, location, False, on_event)):
        return []
    return lines


def _differences(dataset: ImageDataset, walked: Iterator[Image]) -> list[str]:
    """Return the differences of index and walk; from the first one on, both are held in memory, of a dataset with versions always."""
    indexed = _indexed(dataset)
    if dataset.earlier:  # new images stand behind the old ones, wherever they lie in the source
        return _compared(list(indexed), list(walked), in_order=False)
    for indexed_image, walked_image in zip_longest(indexed, walked):
        if indexed_image != walked_image:
            return _compared([image for image in (indexed_image, *indexed) if image], [image for image in (walked_image, *walked) if image])
    return []


def _indexed(dataset: ImageDataset) -> Iterator[Image]:
    for start in range(0, len(dataset), _BLOCK):
        stop = min(start + _BLOCK, len(dataset))
        images = zip(dataset.ids(start, stop), dataset.sha256s(start, stop), strict=True)
        yield from (image for number, image in enumerate(images, start) if not dataset.is_removed(number))


def _walked(dataset: ImageDataset, source: str, dense_targets: bool, on_event: OnEvent) -> Iterator[Image]:
    for results, done, total in walk_source(source, dense_targets):
        yield from ((image.item.id, image.item.sha256) for image in results if isinstance(image.item, ImageRow))
        on_event({"event": "progress", "stage": f"verify {dataset.name}", "done": done, "total": total, "unit": "files"})


def _compared(indexed_images: list[Image], walked_images: list[Image], in_order: bool = True) -> list[str]:
    indexed, walked = dict(indexed_images), dict(walked_images)
    lines = [
        f"{image_id} was added" if image_id not in indexed else f"{image_id} has other bytes"
        for image_id, sha256 in walked_images
        if indexed.get(image_id) != sha256
    ]
    lines += [f"{image_id} is gone" for image_id in indexed if image_id not in walked]
    return lines or (["the images are in another order"] if in_order else [])


def verify_source(dataset: ImageDataset, on_event: OnEvent = ignore_event, source: str | None = None) -> None:
    """Raise `CacheMismatch` naming the first differences when the source is not what was indexed, or is gone."""
    location = source or dataset.source
    try:
        lines = source_differences(dataset, on_event, location)
    except BadInput as error:
        lines = [str(error)]
    if lines:
        named = "; ".join(islice(lines, _SHOWN)) + ("; …" if len(lines) > _SHOWN else "")
        raise CacheMismatch(
            f"the source of {dataset.key} has changed since it was indexed ({len(lines)} differences: {named}); "
            f"restore it, or index {location} again and extract for the new dataset"
        )
