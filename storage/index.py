"""`index`: a source of images becomes a dataset of a store, or is compared with the one that was made of it."""

from dataclasses import dataclass
from typing import Any

from .core.choices import Orientation
from .core.errors import BadInput
from .core.events import OnEvent, ignore_event
from .images.indexing import build_index
from .images.verify_source import verify_source
from .sources.locations import canonical_source
from .store import FeatureStore


@dataclass(frozen=True)
class IndexOptions:
    """Which images become which dataset."""

    source: str
    """A folder tree, WebDataset tars, or Parquet files with image bytes."""
    store: str
    """Folder or URL of the feature store, which is made when absent."""
    name: str
    """What the dataset is called."""
    max_bad_share: float = 0.001
    """Stop when more than this share of the images cannot be read."""
    verify: bool = False
    """Only compare the source with the index that is there, image by image."""
    dense_targets: bool = False
    """Take files such as 1.seg.png or 1.depth.png beside 1.jpg as images too."""
    orientation: Orientation | None = None
    """Turn images as their EXIF orientation asks for, or leave them; None: upright, and with `verify` as the index says."""


def index(options: IndexOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Index a source into a store and return the dataset's key and counts; with `verify` only compare. Raises BadInput, CacheMismatch."""
    if options.verify:
        return _verified(options, on_event)
    store, name, orientation = FeatureStore.create(options.store), options.name, options.orientation or "upright"
    dataset = build_index(
        store.objects, options.source, name, max_bad_share=options.max_bad_share, dense_targets=options.dense_targets,
        orientation=orientation, on_event=on_event,
    )  # fmt: skip
    others = [key for key in store.list_datasets() if key.partition("@")[0] == name and key != dataset.key]
    if others:
        text = f"{name} also names {', '.join(others)} of other images, which stay: say {dataset.key} for this one, or take another --name"
        on_event({"event": "warning", "text": text})
    counts = {"images": len(dataset), "labels": len(dataset.label_names)}
    turns = {"orientation": orientation, "images_with_orientation": dataset.oriented}
    return {"dataset": dataset.key, **counts, **turns, "skipped": dataset.skipped, "left_out": dataset.left_out}


def _verified(options: IndexOptions, on_event: OnEvent) -> dict[str, Any]:
    """Compare each image of the source with the index; raises CacheMismatch where they differ."""
    indexed, source = FeatureStore.open(options.store).dataset(options.name), options.source
    location = next((known for known in indexed.sources if canonical_source(known) == canonical_source(source)), None)
    if location is None:
        raise BadInput(
            f"{indexed.key} was indexed from {', '.join(indexed.sources)}, not from {source}; --verify compares with where its images lie"
        )
    if indexed.oriented and options.orientation not in (None, indexed.orientation):
        raise BadInput(f"{indexed.key} was indexed {indexed.orientation}, not {options.orientation}; leave --orientation out of --verify")
    verify_source(indexed, on_event, location)
    return {"dataset": indexed.key, "images": len(indexed), "source": location, "unchanged": True}
