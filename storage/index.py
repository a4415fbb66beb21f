"""Index a source of images as a dataset of a store, or compare the source with an existing index."""

from dataclasses import dataclass
from typing import Any

from .core.choices import Orientation
from .core.errors import BadInput
from .core.events import OnEvent, ignore_event
from .core.identity import short
from .images.dataset import ImageDataset
from .images.growth import newest_versions, versions_named
from .images.indexing import build_index
from .images.locations import canonical_source, refuse_store_inside
from .images.verify_source import verify_source
from .store import FeatureStore


@dataclass(frozen=True)
class IndexOptions:
    """Options of `index`: the source, the store and how images are taken."""

    source: str
    """A folder tree, WebDataset tars, or Parquet files with image bytes."""
    store: str
    """Folder or URL of the feature store, created when absent."""
    name: str
    """Name of the dataset."""
    max_bad_share: float = 0.001
    """Stop when more than this share of the images cannot be read."""
    verify: bool = False
    """Only compare the source with the index that is there, image by image."""
    dense_targets: bool = False
    """Take files such as 1.seg.png or 1.depth.png beside 1.jpg as images too."""
    orientation: Orientation | None = None
    """Turn images as their EXIF orientation asks for, or leave them; None: as the dataset has it, upright where it is new."""
    allow_removed: bool = False
    """Where images left the source, keep their rows and mark them as removed, instead of refusing it."""


def index(options: IndexOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Index a source into a store and return the dataset's key and counts; with `verify` only compare. Raise BadInput, CacheMismatch."""
    if options.verify:
        return _verify_against_source(options, on_event)
    refuse_store_inside(options.store, options.source)
    store, name = FeatureStore.create(options.store), options.name
    orientation = options.orientation or _recorded_orientation(store, name)
    dataset = build_index(
        store.objects, options.source, name, max_bad_share=options.max_bad_share, dense_targets=options.dense_targets,
        orientation=orientation, allow_removed=options.allow_removed, on_event=on_event,
    )  # fmt: skip
    _say_version(store, dataset, on_event)
    counts = {"images": len(dataset), "labels": len(dataset.label_names)}
    turns = {"orientation": orientation, "images_with_orientation": dataset.oriented}
    counted = {"skipped": dataset.skipped, "left_out": dataset.left_out, **version_fields(dataset)}
    return {"dataset": dataset.key, **counts, **turns, **counted}


def _recorded_orientation(store: FeatureStore, name: str) -> Orientation:
    """Return how the newest version of the only dataset of a name is turned, upright where nothing says so."""
    newest = newest_versions(versions_named(store.objects, name))
    return newest[0].indexed if len(newest) == 1 and newest[0].oriented else "upright"


def _say_version(store: FeatureStore, dataset: ImageDataset, on_event: OnEvent) -> None:
    """Say which version it is, and what else its name means."""
    name, newest = dataset.name, newest_versions(versions_named(store.objects, dataset.name))
    later = next((newer for newer in newest if dataset.digest in {version.digest for version in newer.earlier}), None)
    if later is not None:
        text = (
            f"{dataset.key} is version {dataset.version} of {name}, which stays as it is: {name} means {later.key}, version {later.version}"
        )
        on_event({"event": "warning", "text": text})
    elif dataset.earlier:
        before, removed = dataset.earlier[-1], f", {dataset.removed_count:,} are removed" if dataset.removed_count else ""
        text = f"{dataset.key} is version {dataset.version} of {name}: {before.images:,} images as in version {dataset.version - 1}"
        text = f"{text}, {len(dataset) - before.images:,} behind them{removed}. {name} means this one from now on"
        on_event({"event": "note", "text": text})
    others = [other.key for other in newest if other.key != dataset.key and other is not later]
    if others:
        text = f"{name} also names {', '.join(others)} of other images, which stay: say {dataset.key} for this one, or take another --name"
        on_event({"event": "warning", "text": text})


def version_fields(dataset: ImageDataset) -> dict[str, Any]:
    """Return a dataset's version, the keys of those before it, and how many images are removed; {} of one that continues none."""
    if not dataset.earlier:
        return {}
    extends = [f"{dataset.name}@{short(version.digest)}" for version in dataset.earlier]
    return {"version": dataset.version, "extends": extends, "new_images": len(dataset) - dataset.earlier[-1].images,
            "removed_images": dataset.removed_count}  # fmt: skip


def _verify_against_source(options: IndexOptions, on_event: OnEvent) -> dict[str, Any]:
    """Compare each image of the source with the index; raise `CacheMismatch` where they differ."""
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
