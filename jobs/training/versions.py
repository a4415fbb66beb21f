"""Which version of a dataset a run reads: the newest, and for a run that goes on the one that it began with.

A run records the digest of each dataset. A name that has meant something newer since is read as it was meant then, so that the same command
resumes a run although its photos grew. Runs of before this record name their views, which lead to the dataset.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import EupeError
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.urls import is_url
from ...storage.objects.objects import open_objects
from ...storage.store import FeatureStore
from ...student.training.run_folder import RunFolder
from .options import TrainOptions

_MAX_RECORD_BYTES = 64 << 20


def recorded_versions(options: TrainOptions, store: FeatureStore, out: Path | str, on_event: OnEvent = ignore_event) -> dict[str, str]:
    """Return by name the key of the dataset that a name meant when the run in `out` began, where it means another one now."""
    recorded, versions = _recorded_datasets(store, out, options.students), dict[str, str]()
    for name in options.datasets:
        keys = [key for key in recorded if key.partition("@")[0] == name]
        if len(keys) == 1 and keys[0] in store.list_datasets() and (now := _newest(store, name)) != keys[0]:
            versions[name] = keys[0]
            text = f"{name} is {keys[0]}, as this run was begun" + ("" if now is None else f"; {now} is newer: train on it in a new folder")
            on_event({"event": "note", "text": text})
    return versions


def _newest(store: FeatureStore, name: str) -> str | None:
    """Return the key that a name means now, None where it is ambiguous or damaged."""
    try:
        return store.dataset(name).key
    except EupeError:
        return None


def _recorded_datasets(store: FeatureStore, out: Path | str, students: Sequence[str]) -> list[str]:
    """Return the keys of the datasets of the first run below a folder or URL that has begun, [] where none has."""
    folders = list(students) if len(students) > 1 else [""]
    datasets = next(filter(None, (_record(out, folder, "recipe.json").get("datasets") for folder in folders)), None)
    if datasets is not None:
        return list(datasets)
    keys = []
    for views in next(filter(None, (_record(out, folder, "identities.json").get("views") for folder in folders)), ()):
        with contextlib.suppress(EupeError):
            keys.append(store.view_set(views).dataset.key)
    return keys


def _record(out: Path | str, folder: str, name: str) -> dict[str, Any]:
    """Return a record of a run that has begun, {} where none has."""
    if not is_url(str(out)):
        return RunFolder(Path(out) / folder).recorded(name)
    with contextlib.suppress(FileNotFoundError, ValueError):
        return dict(json.loads(open_objects(str(out)).read(f"{folder}/{name}".lstrip("/"), _MAX_RECORD_BYTES)))
    return {}
