"""What is pushed: an export's folder, a run's folder, or a feature set of a store, as files with their paths in the repository.

An export is compared with its SHA256SUMS and a feature set with its records before anything is sent, so that damage stays here. A feature
set goes out as a small store of its own (dataset index, subsets, views, features, statistics, canary), which is laid out beside the cache:
large files of a store on this machine's disk are hard links there where the file system allows it, so that it costs next to nothing; from
an object store it is a copy.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage.core.cache_home import staging_folder
from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent
from ...storage.core.identity import file_sha256
from ...storage.objects.atomic_files import TEMPORARY_PREFIX, Content, link_exclusively
from ...storage.objects.objects import LocalObjects
from ...storage.store import FeatureStore
from ...storage.upkeep.copying import copy_features
from ...student.export.lineage import RECORDS, part_of
from ...teachers.registry.resolve import MODEL_FILE
from .cards import features_card, run_card
from .manifest import ContentKind, FileEntry, Manifest

CARD = "README.md"
_SUMS, _EXPORT = "SHA256SUMS", "export.json"
_LEAST_LINKED_BYTES = 1 << 16


@dataclass(frozen=True)
class Contents:
    """Files by their path in the repository, and a card where they hold none."""

    kind: ContentKind
    name: str
    files: Mapping[str, Path]
    card: str | None = None
    notes: Sequence[str] = field(default_factory=list)

    def manifest(self, on_event: OnEvent) -> Manifest:
        """Return length and sha256 of each file."""
        entries = {}
        for done, (name, path) in enumerate(self.files.items(), start=1):
            entries[name] = FileEntry(path.stat().st_size, file_sha256(path))
            on_event({"event": "progress", "stage": "checksums", "done": done, "total": len(self.files), "unit": "files"})
        return Manifest(self.kind, self.name, entries)


@contextlib.contextmanager
def contents_of(what: str, store: str | None, on_event: OnEvent) -> Iterator[Contents]:
    """Yield what a folder or, with a store, a key names; raises BadInput for anything else, and CacheDamaged for damage."""
    if store is not None:
        with _features(FeatureStore.open(store), what, on_event) as contents:
            yield contents
        return
    folder = Path(what)
    if not folder.is_dir():
        raise BadInput(f"{what} is no folder; give an export's (OUT/FORMAT) or a run's, or a feature set's key with --store")
    if (folder / _EXPORT).is_file():
        yield _export(folder)
    elif (folder / MODEL_FILE).is_file() or any((folder / name).is_file() for name in RECORDS):
        yield _run(folder)
    elif formats := sorted(path.parent.name for path in folder.glob(f"*/{_EXPORT}")):
        raise BadInput(f"{folder} holds several formats: push one repository for each, {', '.join(str(folder / name) for name in formats)}")
    else:
        raise BadInput(f"{folder} is neither an export ({_EXPORT}) nor a run (recipe.json or {MODEL_FILE})")


def _export(folder: Path) -> Contents:
    files = _files_below(folder)
    lines = (folder / _SUMS).read_text().splitlines() if _SUMS in files else []
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    differing = [name for name, sha256 in sums.items() if name not in files or file_sha256(files[name]) != sha256]
    if differing or not sums:
        what = f"{', '.join(differing)} differ from {_SUMS}" if differing else f"it has no {_SUMS}"
        raise CacheDamaged(f"{folder} is not as it was exported: {what}; export it again")
    return Contents("export", folder.name, files)


def _run(folder: Path) -> Contents:
    if part_of(folder) is not None:
        raise BadInput(f"{folder} is a part of a run without its records; push the run, {folder.parent}")
    return Contents("run", folder.name, {name: path for name, path in _files_below(folder).items() if name != CARD}, run_card(folder))


def _files_below(folder: Path) -> dict[str, Path]:
    """Return all files but hidden and temporary ones, by path; raises BadInput for a link out of the folder."""
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith((".", TEMPORARY_PREFIX)) for part in relative.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{path} is a link to {path.resolve()}, outside of what is pushed; copy the file there, or remove the link")
        files[relative.as_posix()] = path
    return files


class _LinkingObjects(LocalObjects):
    """Objects of a folder; one that another folder has under the same key is a second name of that file."""

    def __init__(self, root: Path, source: Path | None) -> None:
        super().__init__(root)
        self._source = source

    def create(self, key: str, content: Content) -> bool:
        """Link a large file, write any other."""
        pieces = list(content)
        size = sum(len(piece) for piece in pieces)
        path = None if self._source is None or size < _LEAST_LINKED_BYTES else self._source / key
        if path is not None and path.is_file() and path.stat().st_size == size:
            linked = link_exclusively(path, self.root / key)
            if linked is not None:
                return linked
        return super().create(key, pieces)


@contextlib.contextmanager
def _features(store: FeatureStore, key: str, on_event: OnEvent) -> Iterator[Contents]:
    reader = store.features(key)
    missing = reader.missing_shards()
    if missing:
        raise BadInput(f"{reader.key} lacks {len(missing):,} of {reader.shards:,} shards; finish `extract-features` first, then push")
    folder = staging_folder() / f"push-{reader.key}"
    FeatureStore.create(str(folder))
    source = store.objects.root if isinstance(store.objects, LocalObjects) else None
    copy_features(store, reader.key, FeatureStore(_LinkingObjects(folder, source)), on_event)
    sources = [place for place in reader.views.dataset.sources if "://" not in place]
    notes = [f"the index names where its images lie here ({', '.join(sources)}), and that text is pushed with it"] if sources else []
    yield Contents("features", reader.key, _files_below(folder), features_card(reader), notes)
    shutil.rmtree(folder, ignore_errors=True)  # after a stop it stays, and the same command goes on from it


def described(contents: Contents, manifest: Manifest) -> dict[str, Any]:
    """Return what is pushed, for a result."""
    return {"kind": contents.kind, "name": contents.name, "files": len(manifest.files), "bytes": manifest.total_bytes}
