"""Gather what a report is about: runs, feature sets of a store, photos for the pictures of tokens.

Photos are those that were named, else one of each of the first labels of the first feature set's dataset. Encoders are the runs that have a
trained model, and those that were named. What cannot be shown (a source that is not there any more, a set without class tokens) becomes
a note on the page with its reason; what was asked for by name and does not exist is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.sources.decode import BadImage, Pixels
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx
from ..pictures.neighbours import Gallery, example_images, example_queries, galleries, images_with_tokens, query_images
from ..pictures.patch_tokens import Encoders, Photo, patch_tokens, read_photos
from ..pictures.pca import pictures
from ..pictures.similarity import similarity_pictures
from .report import Contents, write_report
from .runs import targets
from .store_health import health

PHOTOS = 4
NEIGHBOURS = 8
_MODEL = Path("model") / "model.json"


@dataclass(frozen=True)
class PictureChoice:
    """Which photos and encoders the pictures of tokens show, and how; empty: the dataset's photos, the runs' models."""

    images: Sequence[Path] = ()
    models: Sequence[str] = ()
    size_px: SizePx | None = None
    model_sizes: Mapping[str, SizePx] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    foreground: bool = False
    queries: Sequence[str] = ()


@dataclass(frozen=True)
class ReportOptions:
    """The request of a report: its subject, and the file that is written."""

    out: Path
    """The HTML file that is written."""
    runs: Sequence[Path] = ()
    """Folders of training runs."""
    store: str | None = None
    """Folder or URL of the feature store; None: the page is about runs alone."""
    features: Sequence[str] = ()
    """Feature sets; (): those of the store that the runs learnt from."""
    verify: bool = False
    """Read every byte of the feature sets and report damage."""
    pictures: PictureChoice = field(default_factory=PictureChoice)


def report(options: ReportOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Write the page about runs and feature sets; raises BadInput when it would be about nothing."""
    runs, store, features, out = options.runs, options.store, options.features, options.out
    if not runs and not features:
        raise BadInput("a report is about something: give folders of runs, or --store URL with --features KEY")
    if features and store is None:
        raise BadInput("--features needs --store: the feature store that holds them")
    sets = open_sets(runs, store, features)
    contents = gather(runs, sets, options.pictures, verified=options.verify, on_event=on_event)
    if store is not None and not sets:
        contents = replace(contents, notes=[*contents.notes, f"{store} holds none of the feature sets that these runs learnt from."])
    write_report(contents, out)
    return {"report": str(out), "bytes": out.stat().st_size, "notes": list(contents.notes)}


def open_sets(runs: Sequence[Path], store: str | None, features: Sequence[str]) -> list[FeatureReader]:
    """Return the named feature sets, or with none named those of the store that the runs learnt from."""
    if store is None:
        return []
    opened = FeatureStore.open(store)
    learnt = {key for run in runs for key in targets(run).values()}
    return [opened.features(key) for key in features or sorted(learnt & set(opened.list_features()))]


def gather(
    runs: Sequence[Path], sets: Sequence[FeatureReader], choice: PictureChoice, *, verified: bool, on_event: OnEvent
) -> Contents:  # fmt: skip
    """Return the page's contents."""
    notes: list[str] = []
    photos = chosen_photos(choice, sets, notes)
    names = [*(str(run) for run in runs if (run / _MODEL).is_file()), *choice.models]
    tokens, shown, labels = dict[str, NDArray[np.float32]](), list[Pixels](), [photo.label for photo in photos]
    if photos and names:
        encoders = Encoders(list(dict.fromkeys(names)), choice.size_px, choice.model_sizes, choice.weights)
        shown, tokens = patch_tokens(encoders, photos, on_event)
    elif choice.images:
        notes.append("No pictures of tokens: no run here has a trained model yet, and no --model was named.")
    return Contents(
        runs=runs,
        pictures=pictures(labels, shown, tokens, foreground_only=choice.foreground) if tokens else (),
        similarity=similarity_pictures(labels, shown, tokens) if tokens else (),
        neighbours=chosen_galleries(sets, choice.queries, notes, on_event),
        health=[health(reader, on_event, verified=verified) for reader in sets],
        notes=notes,
    )


def chosen_photos(choice: PictureChoice, sets: Sequence[FeatureReader], notes: list[str]) -> list[Photo]:
    """Return the named photos, else one of each of the first labels of the first set's dataset."""
    if choice.images or not sets:
        return read_photos(choice.images)
    try:
        return dataset_photos(sets[0])
    except (CacheMismatch, BadImage) as error:
        notes.append(f"No pictures of tokens: {error}")
        return []


def dataset_photos(reader: FeatureReader) -> list[Photo]:
    """Return whole photos of a feature set's dataset, by label where there are labels; raises CacheMismatch when they are gone."""
    dataset, photos = reader.views.dataset, []
    for image in example_images(dataset, np.setdiff1d(np.arange(len(dataset)), dataset.removed()), PHOTOS).tolist():
        row = dataset.row(image)
        photos.append(Photo(dataset.label_names[row.label] if row.label >= 0 else row.id, dataset.read_image(image)))
    return photos


def chosen_galleries(
    sets: Sequence[FeatureReader], queries: Sequence[str], notes: list[str], on_event: OnEvent
) -> dict[str, list[Gallery]]:  # fmt: skip
    """Return galleries by feature set; each of the queries must be an image of the first set's dataset."""
    galleries_of = {}
    for reader in sets:
        if reader.cls_dim is None:
            notes.append(f"No neighbours by {reader.key}: its teacher has no class token.")
            continue
        images = len(images_with_tokens(reader))
        if images < 2:
            notes.append(f"No neighbours by {reader.key}: it holds tokens of {images} images so far.")
            continue
        try:
            chosen = query_images(reader, queries) if queries else example_queries(reader)
            galleries_of[reader.key] = galleries(reader, chosen, min(NEIGHBOURS, images - 1), on_event)
        except (CacheMismatch, BadImage) as error:
            notes.append(f"No neighbours by {reader.key}: {error}")
    return galleries_of
