"""A run whose folder is a URL: it trains in a local copy, which goes up into the object store beside the training (`upload_thread`).

    s3://bucket/run/
      run-id.json                       created exclusively before the first step: a second run begun there is refused
      recipe.json  identities.json  metrics.jsonl  tensorboard/  summary.json (last of all)
      checkpoints/step-0001000/…        files first, then manifest.json with their sizes and sha256
      model/  initial/model/  …         the same

A folder of tensors exists when its manifest does, and goes manifest first, when all that is newer is there. On another machine the run is
fetched, verified and goes on; where the local copy of the same run is ahead (it was stopped before its upload ended), it stays. Price: a
local disk that holds the checkpoints, and each file once in memory on its way.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from ...storage.core.cache_home import runs_folder
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.core.identity import canonical_json, digest, short
from ...storage.objects.atomic_files import TEMPORARY_PREFIX, replace_folder, write_atomically
from ...storage.objects.objects import Objects, open_objects
from ...student.model.ranks import Ranks
from ...student.training.checkpoint import step_in_name
from .remote_run import MANIFEST, RUN_ID, Manifest, RunCopy
from .upload_thread import uploading

_LAST = "summary.json"
_MARKS = ("checkpoint.json", "model.json")  # a folder with one of these is put as a whole


def local_copy(url: str) -> Path:
    """Return where the copy of a run at a URL lies on this machine."""
    return runs_folder() / short(digest(url))


@contextlib.contextmanager
def mirrored(url: str, ranks: Ranks, on_event: OnEvent) -> Iterator[tuple[Path, OnEvent]]:
    """Yield the local copy, up to date, and the callback that has it uploaded; every rank of a run calls this.

    A block that ends well waits for the upload; one that ends in an error says what is not up yet.
    """
    mirror = RunMirror(open_objects(url), local_copy(url))
    if ranks.first:
        mirror.pull()
    ranks.barrier()
    if not ranks.first:  # on another machine; beside the first rank there is nothing to do
        mirror.pull()
        yield mirror.run_folder, on_event
        return
    with uploading(mirror, on_event) as report:
        yield mirror.run_folder, report


class RunMirror:
    """One run's folder and the objects that are its copy; one thread at a time pushes."""

    def __init__(self, objects: Objects, run_folder: Path) -> None:
        self.objects, self.run_folder, self.copy = objects, run_folder, RunCopy(objects)
        self.url = objects.url
        self._claimed = False
        self._id_file = run_folder.with_name(f"{run_folder.name}.id")
        self._up: dict[str, Manifest] = {}
        self._sent: dict[str, tuple[int, int]] = {}
        self._described: dict[str, tuple[tuple[int, int], Manifest]] = {}

    def pull(self) -> None:
        """Make the local copy what the store holds, unless it is the same run and further; raises `CacheDamaged`, `StoreUnavailable`."""
        there, here = self.copy.run_id(), self._id_file.read_text() if self._id_file.is_file() else None
        if there is not None and there == here and self._newest_here() >= self._newest_there():
            return
        self._id_file.unlink(missing_ok=True)  # from here to the end, a kill leaves no copy of any run
        shutil.rmtree(self.run_folder, ignore_errors=True)
        if there is not None:
            with replace_folder(self.run_folder) as temporary:
                self.copy.fetch(temporary)
        write_atomically(self._id_file, (there or secrets.token_hex(8)).encode())

    def claim(self) -> None:
        """Make the URL this run's; raises `BadInput` when another run was begun there."""
        if self._claimed:
            return
        run_id = self._id_file.read_text()
        if not self.objects.create(RUN_ID, [canonical_json({"id": run_id})]) and self.copy.run_id() != run_id:
            raise BadInput(f"another run was begun in {self.objects.url} meanwhile; give a new URL for this one")
        self._claimed = True

    def push(self, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Upload what the store lacks: single files, complete folders in order, then remove there what is gone here; the summary comes
        last.

        The records go first, so that a checkpoint that is up has its metrics. Returns False when `go_on` said no, or when a folder was
        replaced or removed meanwhile: nothing is removed there then, and another push is due.
        """
        self.claim()
        singles, folders = self._files_here()
        for key in sorted(set(singles) - {_LAST}):
            self._put_single(key)
        for name in folders:
            if not (go_on() and self._put_folder(name, go_on)):
                return False
        if self._files_here()[1] != folders:  # the trainer was putting a folder in its place, or has a new checkpoint
            return False
        there = self.copy.folders()
        newest = _newest(there) if _newest(folders) < 0 else None  # a walk between two checkpoints meets none: one stays there
        for name in there:
            if name not in folders and (newest is None or step_in_name(name) != newest):
                self._remove_folder(name)
        if _LAST in singles:
            self._put_single(_LAST)
        return True

    def missing(self) -> list[str]:
        """Return the folders of tensors that are here and, as far as this object knows, not uploaded; asks no server."""
        return [name for name in self._files_here()[1] if name not in self._up]

    def _files_here(self) -> tuple[list[str], list[str]]:
        """Return single files, and complete folders in their order: checkpoints by step, then the rest."""
        singles, folders = [], []
        for root, below, names in os.walk(self.run_folder):
            below[:] = [name for name in below if not name.startswith(TEMPORARY_PREFIX)]
            relative = Path(root).relative_to(self.run_folder).as_posix()
            if set(names) & set(_MARKS):
                folders.append(relative)
            else:
                singles += [f"{relative}/{name}".removeprefix("./") for name in names if not name.startswith(TEMPORARY_PREFIX)]
        return singles, sorted(folders, key=lambda name: (step_in_name(name) is None, step_in_name(name) or 0, name))

    def _put_single(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = (self.run_folder / key).stat()
            mark = (status.st_size, status.st_mtime_ns)
            if self._sent.get(key) != mark:
                self.objects.replace(key, (self.run_folder / key).read_bytes())
                self._sent[key] = mark

    def _put_folder(self, name: str, go_on: Callable[[], bool]) -> bool:
        """Upload files first, manifest last, from open files: what the trainer removes meanwhile is uploaded whole, or not at all."""
        with contextlib.ExitStack() as stack:
            try:
                mark, files = _opened(self.run_folder / name, stack)
            except FileNotFoundError:
                return False
            known = self._described.get(name)
            manifest = known[1] if known is not None and known[0] == mark else _manifest_of(files)
            self._described[name] = (mark, manifest)
            if self._up.get(name, None) == manifest or self.copy.manifest(name) == manifest:
                self._up[name] = manifest
                return True
            self._up.pop(name, None)
            self.objects.remove(f"{name}/{MANIFEST}")
            for file, opened in files.items():
                if not go_on():
                    return False
                opened.seek(0)
                self.objects.replace(f"{name}/{file}", opened.read())
        self.objects.create(f"{name}/{MANIFEST}", [canonical_json({"files": manifest})])
        self._up[name] = manifest
        return True

    def _remove_folder(self, name: str) -> None:
        self.objects.remove(f"{name}/{MANIFEST}")
        for file in self.objects.names(name):
            self.objects.remove(f"{name}/{file}")
        self._up.pop(name, None)

    def _newest_here(self) -> int:
        return _newest(self._files_here()[1])

    def _newest_there(self) -> int:
        return _newest(self.copy.folders())


def _newest(folders: Sequence[str]) -> int:
    """Return the step of the newest checkpoint, -1 without one."""
    return max((step for name in folders if (step := step_in_name(name)) is not None), default=-1)


def _opened(folder: Path, stack: contextlib.ExitStack) -> tuple[tuple[int, int], Mapping[str, BufferedReader]]:
    """Open every file of a folder; returns the folder's mark too. Raises FileNotFoundError when it was replaced or removed meanwhile."""
    before = folder.stat()
    files = {path.name: stack.enter_context(path.open("rb")) for path in sorted(folder.iterdir()) if path.is_file()}
    after = folder.stat()
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        raise FileNotFoundError(folder)
    return (after.st_ino, after.st_mtime_ns), files


def _manifest_of(files: Mapping[str, BufferedReader]) -> Manifest:
    described: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        described[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}
    return described
