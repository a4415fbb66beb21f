"""Read the copy of a run in an object store: which folders are complete, and each of them verified on its way to the disk.

A folder of tensors (a checkpoint, a model) is there when its manifest is, which names each file with its length and sha256. Everything else
is a single file. Nothing here writes to the store.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.core.errors import CacheDamaged
from ...storage.core.identity import file_sha256
from ...storage.objects.atomic_files import replace_folder, translate_os_errors, write_atomically
from ...storage.objects.objects import Objects

Manifest = Mapping[str, Mapping[str, Any]]
MANIFEST, RUN_ID = "manifest.json", "run-id.json"
_FILES = (".json", ".jsonl", ".safetensors")
_TENSORS = ("step-", "model")  # what the last part of such a folder's name begins with


class RunCopy:
    """The objects below one run's URL."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def run_id(self) -> str | None:
        """Return what tells this run from another at the same URL, None when there is none; raises `CacheDamaged`."""
        try:
            return str(json.loads(self.objects.read(RUN_ID))["id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamaged(f"{self.objects.url}/{RUN_ID} is damaged ({error}); use a new URL for this run") from error

    def manifest(self, name: str) -> Manifest | None:
        """Return length and sha256 of each file of a folder, None when the folder is not there as a whole; raises `CacheDamaged`."""
        try:
            files = dict(json.loads(self.objects.read(f"{name}/{MANIFEST}"))["files"])
            if any(Path(file).name != file for file in files):
                raise ValueError(f"it names {next(file for file in files if Path(file).name != file)!r}, which is no file of that folder")
            return {file: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for file, entry in files.items()}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheDamaged(
                f"{self.objects.url}/{name}/{MANIFEST} is damaged ({error}); move it elsewhere to leave that folder out"
            ) from error

    def folders(self, prefix: str = "") -> list[str]:
        """Return complete folders, by path; one whose upload was cut short is not among them."""
        names = self.objects.names(prefix)
        if MANIFEST in names:
            return [prefix]
        return [folder for key in self._below(prefix, names) if self._is_folder(key) for folder in self.folders(key)]

    def fetch(self, into: Path, prefix: str = "") -> None:
        """Fetch everything below a prefix: complete folders, verified, and single files as they are; raises `CacheDamaged`."""
        names = self.objects.names(prefix)
        if MANIFEST in names:
            self.fetch_folder(prefix, into / prefix)
            return
        if prefix.rpartition("/")[2].startswith(_TENSORS):
            return  # an upload that was cut short
        for key in self._below(prefix, names):
            if self._is_folder(key):
                self.fetch(into, key)
            elif key != RUN_ID:
                write_atomically(into / key, self.objects.read(key))

    def fetch_folder(self, name: str, final: Path) -> None:
        """Fetch one complete folder to `final`, or nothing; raises `CacheDamaged` for a file that differs from the manifest."""
        manifest = self.manifest(name) or {}
        needed_bytes = sum(entry["bytes"] for entry in manifest.values())
        with translate_os_errors(final, needed_bytes), replace_folder(final) as temporary:
            for file, described in manifest.items():
                try:
                    (temporary / file).write_bytes(self.objects.read(f"{name}/{file}", described["bytes"]))
                except FileNotFoundError as error:
                    raise self._differs(name, file, "is not there, as its manifest says") from error
                if file_sha256(temporary / file) != described["sha256"]:
                    raise self._differs(name, file, "differs from its manifest")

    def _differs(self, name: str, file: str, how: str) -> CacheDamaged:
        return CacheDamaged(f"{self.objects.url}/{name}/{file} {how}; move {name}/{MANIFEST} elsewhere to leave that folder out")

    def _below(self, prefix: str, names: list[str]) -> list[str]:
        return [f"{prefix}/{name}".lstrip("/") for name in names]

    def _is_folder(self, key: str) -> bool:
        """Return whether a key is a folder. A listing does not say it; a folder's name may hold dots, as a student's does."""
        name = key.rpartition("/")[2]
        if "." not in name:
            return True
        return not (name.endswith(_FILES) or name.startswith("events.")) and bool(self.objects.names(key))
