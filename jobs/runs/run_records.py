"""Fetch the records of runs in an object store that people look at, into a folder that reads as a run's own.

Only what is small comes: recipe, identities, metrics, summary, evaluations. Of checkpoints there is an empty folder each, because how far a
run is follows from their names; only whole ones count. Nothing here can be trained on or from.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...storage.core.errors import BadInput
from ...storage.objects.atomic_files import write_atomically
from ...storage.objects.objects import Objects, open_objects
from .remote_run import MANIFEST, RunCopy

_RECORDS = ("recipe.json", "identities.json", "metrics.jsonl", "summary.json")
_RUN = {"recipe.json", "identities.json"}
_DEPTH = 6


@contextmanager
def records_below(url: str) -> Iterator[Path]:
    """Yield a folder with the records of every run at or below a URL, at its path from there; raises `BadInput` when there is none."""
    folder = Path(tempfile.mkdtemp(prefix="eupe-runs-"))
    try:
        objects = open_objects(url.rstrip("/"))
        if not _fetch(objects, "", folder, _DEPTH):
            raise BadInput(f"{url} holds no run: there is no recipe.json at or below it")
        yield folder
    finally:
        shutil.rmtree(folder)


def _fetch(objects: Objects, prefix: str, into: Path, depth: int) -> int:
    """Fetch the records of the runs below a prefix, and return how many runs were found."""
    names = objects.names(prefix)
    if set(names) >= _RUN:
        for name in set(names) & set(_RECORDS):
            write_atomically(into / prefix / name, objects.read(f"{prefix}/{name}".lstrip("/")))
        for checkpoint in RunCopy(objects).folders(f"{prefix}/checkpoints".lstrip("/")):
            (into / checkpoint).mkdir(parents=True)
        return 1
    if MANIFEST in names or not depth:
        return 0
    below = [f"{prefix}/{name}".lstrip("/") for name in names if not name.endswith((".json", ".jsonl", ".id"))]
    return sum(_fetch(objects, key, into, depth - 1) for key in below)
