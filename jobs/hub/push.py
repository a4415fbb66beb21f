"""`push`: an export, a run or a feature set to a repository of the hub.

Files that the repository holds already, with the same content, are not sent again, so that the same command goes on after a stop. They are
committed some hundred at a time; the manifest and the card come in a last commit, whose id is what `pull` is given. Afterwards the hub's
own list of that commit is compared with the manifest.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent, ignore_event
from .contents import CARD, Contents, contents_of, described
from .manifest import MANIFEST, Manifest
from .repository import Repository, hub_client, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_FILES_A_COMMIT = 200
_BYTES_A_COMMIT = 10 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PushOptions:
    """The request of a push."""

    what: str
    """Folder of an export or of a run; with a store the key of a feature set."""
    to: str
    """hub:OWNER/NAME, for a feature set hub:datasets/OWNER/NAME."""
    store: str | None = None
    private: bool = False
    """Make a repository that is not there yet a private one."""
    dry_run: bool = False
    """Say what would be sent, and ask the hub for nothing but what is there."""

    def __post_init__(self) -> None:
        repository = Repository.parse(self.to)
        if repository.commit is not None:
            raise BadInput(f"{self.to} names a commit, and a push makes one: give {repository.of(None)}")
        wanted = "model" if self.store is None else "dataset"
        if repository.kind != wanted:
            what = "a feature set goes into a dataset repository, hub:datasets/OWNER/NAME"
            raise BadInput(f"{self.to}: {what if wanted == 'dataset' else 'exports and runs go into a model repository, hub:OWNER/NAME'}")


def push(options: PushOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Send what is not there yet and return the address of the commit; raises BadInput, CacheDamaged and StoreUnavailable."""
    repository, client = Repository.parse(options.to), hub_client()
    with contents_of(options.what, options.store, on_event) as contents:
        for note in contents.notes:
            on_event({"event": "warning", "text": note})
        manifest = contents.manifest(on_event)
        with hub_errors(repository):
            _refuse_other_contents(client, repository, manifest)
            there = _files_there(client, repository)
        missing = {name: path for name, path in contents.files.items() if not _is_there(name, path, manifest, there)}
        summary = {
            **described(contents, manifest), "to": repository.of(None), "files_to_send": len(missing),
            "bytes_to_send": sum(manifest.files[name].bytes for name in missing),
        }  # fmt: skip
        if options.dry_run:
            return {**summary, "dry_run": True}
        with hub_errors(repository):
            client.create_repo(repository.name, repo_type=repository.kind, private=options.private or None, exist_ok=True)
            commit = _send(client, repository, contents, manifest, missing, on_event)
            _verify(client, repository, commit, contents, manifest)
    return {**summary, "commit": commit, "address": repository.of(commit), "verified": True}


def _refuse_other_contents(client: "HfApi", repository: Repository, manifest: Manifest) -> None:
    """Raise BadInput where the repository holds something else that was pushed."""
    from huggingface_hub import errors

    try:
        path = client.hf_hub_download(repository.name, MANIFEST, repo_type=repository.kind, revision="main")
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError):
        return
    there = Manifest.from_bytes(Path(path).read_bytes(), repository.of(None))
    if (there.kind, there.name) != (manifest.kind, manifest.name):
        raise BadInput(
            f"{repository.of(None)} holds the {there.kind} {there.name}, this is the {manifest.kind} {manifest.name}; push to another "
            "repository"
        )


def _files_there(client: "HfApi", repository: Repository, revision: str = "main") -> dict[str, tuple[str, str]]:
    """Return what the hub says of each file of a commit: (sha256, "") of a large one, ("", git's id) of any other."""
    from huggingface_hub import errors
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = list(client.list_repo_tree(repository.name, recursive=True, revision=revision, repo_type=repository.kind))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return {}
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: ("", file.blob_id) if file.lfs is None else (file.lfs.sha256, "") for file in files}


def _is_there(name: str, path: Path, manifest: Manifest, there: Mapping[str, tuple[str, str]]) -> bool:
    sha256, git_id = there.get(name, ("", ""))
    return manifest.files[name].sha256 == sha256 or (bool(git_id) and _git_id(path) == git_id)


def _git_id(path: Path) -> str:
    """Return what git calls a file of this content, which is all that the hub knows of a small one."""
    hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _parts(missing: Mapping[str, Path]) -> Iterator[list[tuple[str, Path]]]:
    """Yield the files of one commit after another."""
    part: list[tuple[str, Path]] = []
    size = 0
    for name, path in missing.items():
        if part and (len(part) == _FILES_A_COMMIT or size + path.stat().st_size > _BYTES_A_COMMIT):
            yield part
            part, size = [], 0
        part.append((name, path))
        size += path.stat().st_size
    if part:
        yield part


def _send(
    client: "HfApi", repository: Repository, contents: Contents, manifest: Manifest, missing: Mapping[str, Path], on_event: OnEvent
) -> str:
    """Commit the missing files, then the manifest and the card; return the last commit."""
    from huggingface_hub import CommitOperationAdd

    done, total = 0, sum(manifest.files[name].bytes for name in missing)
    for part in _parts(missing):
        _commit(client, repository, [CommitOperationAdd(name, str(path)) for name, path in part], f"{contents.kind} {contents.name}: files")
        done += sum(manifest.files[name].bytes for name, _ in part)
        on_event({"event": "progress", "stage": f"push {contents.name}", "done": done, "total": total, "unit": "bytes"})
    last = [CommitOperationAdd(MANIFEST, manifest.to_bytes())]
    if contents.card is not None:
        last.append(CommitOperationAdd(CARD, contents.card.encode()))
    return _commit(client, repository, last, f"{contents.kind} {contents.name}")


def _commit(client: "HfApi", repository: Repository, additions: Sequence["CommitOperationAdd"], message: str) -> str:
    committed = client.create_commit(repository.name, additions, commit_message=message, repo_type=repository.kind)
    return str(committed.oid)


def _verify(client: "HfApi", repository: Repository, commit: str, contents: Contents, manifest: Manifest) -> None:
    """Raise CacheDamaged where the hub's list of the commit differs from the manifest."""
    there = _files_there(client, repository, commit)
    differing = [name for name, path in contents.files.items() if not _is_there(name, path, manifest, there)]
    if differing:
        raise CacheDamaged(
            f"{repository.of(commit)} does not hold {', '.join(differing[:3])} as pushed ({len(differing):,} files differ): was the "
            "repository changed meanwhile? Run the same command again"
        )
