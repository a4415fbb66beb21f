"""A run whose folder is a URL: it trains in a local copy, which is put into the object store at the start, each checkpoint and the end.

    s3://bucket/run/
      run-id.json                       created exclusively by the first push: a second run begun there is refused
      recipe.json  identities.json  metrics.jsonl  tensorboard/  summary.json (last of all)
      checkpoints/step-0001000/…        files first, then manifest.json with their sizes and sha256
      model/  initial/model/  …         the same

A folder of tensors exists when its manifest does, and goes manifest first. On another machine the run is fetched, verified and goes on;
where the local copy of the same run is ahead (the network was down), it stays. Price: a local disk that holds the checkpoints, each file
once in memory on its way, and an upload within the step that makes a checkpoint. A push that fails in the middle of a run is a warning,
and the next checkpoint brings everything up to date; at the end it is an error.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..storage.atomic import TEMPORARY_PREFIX, make_folder, replace_folder, write_atomically
from ..storage.errors import BadInput, CacheDamaged, StoreUnavailable
from ..storage.identity import canonical_json, digest, file_sha256, short
from ..storage.objects import Objects, open_objects
from ..student.ranks import Ranks
from ..teachers.weights import weights_folder

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
Manifest = dict[str, dict[str, Any]]
MANIFEST = "manifest.json"
_ID, _LAST = "run-id.json", "summary.json"
_MARKS = ("checkpoint.json", "model.json")  # a folder with one of these is put as a whole
_PUSH_AT = ("start", "checkpoint", "end")


def is_url(out: Path | str) -> bool:
    """Whether a run's folder lies in an object store."""
    return "://" in str(out)


def local_copy(url: str) -> Path:
    """Where the copy of a run at a URL lies on this machine."""
    return weights_folder().parent / "runs" / short(digest(url))


@contextlib.contextmanager
def mirrored(url: str, ranks: Ranks, on_event: OnEvent) -> Iterator[tuple[Path, OnEvent]]:
    """The local copy, up to date, and the callback that pushes it; every rank of a run calls this."""
    mirror = RunMirror(open_objects(url), local_copy(url))
    if ranks.first:
        mirror.pull()
    ranks.wait()
    if not ranks.first:  # on another machine; beside the first rank there is nothing to do
        mirror.pull()
    yield mirror.home, mirror.pushing(on_event) if ranks.first else on_event


class RunMirror:
    """One run's folder `home` and the objects that are its copy."""

    def __init__(self, objects: Objects, home: Path) -> None:
        self.objects, self.home = objects, home
        self._id_file = home.with_name(f"{home.name}.id")

    def pull(self) -> None:
        """Make the local copy what the store holds, unless it is the same run and further; raises `CacheDamaged`, `StoreUnavailable`."""
        there, here = self._remote_id(), self._id_file.read_text() if self._id_file.is_file() else None
        if there is not None and there == here and self._newest_here() >= self._newest_there():
            return
        shutil.rmtree(self.home, ignore_errors=True)
        make_folder(self.home.parent)
        write_atomically(self._id_file, (there or secrets.token_hex(8)).encode())
        if there is not None:
            self._fetch("")

    def pushing(self, on_event: OnEvent) -> OnEvent:
        """The callback that puts the run into the store after the trainer's events that call for it."""

        def told(event: Event) -> None:
            on_event(event)
            if event["event"] in _PUSH_AT:
                try:
                    self.push()
                except StoreUnavailable as error:
                    if event["event"] == "end":
                        raise
                    on_event({"event": "warning", "text": f"{error}; the run goes on, the next checkpoint is put with this one"})

        return told

    def push(self) -> None:
        """Put what the store lacks: whole folders first, then single files, then what is gone here is removed there."""
        self._claim()
        folders = {path.parent.relative_to(self.home).as_posix() for mark in _MARKS for path in self.home.rglob(mark)}
        folders = {name for name in folders if TEMPORARY_PREFIX not in name}
        for name in sorted(folders):
            self._put_folder(name)
        singles = [path for path in self.home.rglob("*") if path.is_file() and path.parent.relative_to(self.home).as_posix() not in folders]
        singles = [path for path in singles if TEMPORARY_PREFIX not in path.as_posix()]
        for path in sorted(singles, key=lambda path: path.name == _LAST):
            self._replace(path.relative_to(self.home).as_posix(), path.read_bytes())
        for name in self._folders_there(""):
            if name not in folders:
                self._remove_folder(name)

    def _claim(self) -> None:
        own = self._id_file.read_text()
        if not self.objects.create(_ID, [canonical_json({"id": own})]) and self._remote_id() != own:
            raise BadInput(f"another run was begun in {self.objects.url} meanwhile; give a new URL for this one")

    def _remote_id(self) -> str | None:
        try:
            return str(json.loads(self.objects.read(_ID))["id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamaged(f"{self.objects.url}/{_ID} is damaged ({error}); use a new URL for this run") from error

    def _put_folder(self, name: str) -> None:
        files = sorted(path for path in (self.home / name).iterdir() if path.is_file())
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
        if self._manifest(name) == manifest:
            return
        self.objects.remove(f"{name}/{MANIFEST}")
        for path in files:
            self._replace(f"{name}/{path.name}", path.read_bytes())
        self.objects.create(f"{name}/{MANIFEST}", [canonical_json({"files": manifest})])

    def _replace(self, key: str, data: bytes) -> None:
        """Nobody reads what has no manifest, and the single files are records for people: no need for one step."""
        if not self.objects.create(key, [data]) and (self.objects.size(key) != len(data) or self.objects.read(key) != data):
            self.objects.remove(key)
            self.objects.create(key, [data])

    def _remove_folder(self, name: str) -> None:
        self.objects.remove(f"{name}/{MANIFEST}")
        for file in self.objects.names(name):
            self.objects.remove(f"{name}/{file}")

    def _manifest(self, name: str) -> Manifest | None:
        try:
            return dict(json.loads(self.objects.read(f"{name}/{MANIFEST}"))["files"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamaged(f"{self.objects.url}/{name}/{MANIFEST} is damaged ({error}); remove it to leave that folder out") from error

    def _folders_there(self, prefix: str) -> list[str]:
        """Whole folders of the store, by path; a folder whose push was cut short is not among them."""
        names = self.objects.names(prefix)
        if MANIFEST in names:
            return [prefix]
        below = [f"{prefix}/{name}".lstrip("/") for name in names if "." not in name]
        return [found for name in below for found in self._folders_there(name)]

    def _fetch(self, prefix: str) -> None:
        """Everything below a prefix: whole folders verified against their manifests, single files as they are."""
        names = self.objects.names(prefix)
        if MANIFEST in names:
            self._fetch_folder(prefix)
            return
        if prefix.rpartition("/")[2].startswith("step-") or prefix.endswith("model"):
            return  # a push that was cut short
        for name in names:
            key = f"{prefix}/{name}".lstrip("/")
            if "." not in name:
                self._fetch(key)
            elif key != _ID:
                write_atomically(self.home / key, self.objects.read(key))

    def _fetch_folder(self, name: str) -> None:
        with replace_folder(self.home / name) as temporary:
            for file, described in (self._manifest(name) or {}).items():
                if Path(file).name != file:
                    raise CacheDamaged(f"{self.objects.url}/{name}/{MANIFEST} names {file!r}, which is no file of that folder")
                (temporary / file).write_bytes(self.objects.read(f"{name}/{file}", int(described["bytes"])))
                if file_sha256(temporary / file) != described["sha256"]:
                    raise CacheDamaged(
                        f"{self.objects.url}/{name}/{file} differs from its manifest; remove {name}/{MANIFEST} there to leave it out"
                    )

    def _newest_here(self) -> str:
        return max((path.name for path in self.home.rglob("step-*") if TEMPORARY_PREFIX not in path.name), default="")

    def _newest_there(self) -> str:
        return max((name.rpartition("/")[2] for name in self._folders_there("") if "step-" in name), default="")
