"""`pull`: what `push` has sent, at one commit, verified file by file against the manifest.

An export or a run comes into a new folder, or goes on into one where an earlier pull was stopped: a file that is there with the right
sha256 is not fetched again, and one with another content is never overwritten. A feature set comes into a store: its files are fetched
beside the cache, verified, copied shard by shard as `features cp` does, and removed there.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...storage.core.cache_home import staging_folder
from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import file_sha256
from ...storage.objects.atomic_files import translate_os_errors
from ...storage.store import FeatureStore
from ...storage.upkeep.copying import copy_features
from .manifest import MANIFEST, FileEntry, Manifest
from .repository import Repository, hub_client, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PullOptions:
    """The request of a pull."""

    address: str
    """hub:OWNER/NAME@COMMIT, for a feature set hub:datasets/OWNER/NAME@COMMIT."""
    out: Path | None = None
    """Folder of an export or of a run."""
    store: str | None = None
    """Store of a feature set, made when absent."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        repository = Repository.parse(self.address)
        repository.pinned()
        if repository.kind == "dataset" and (self.store is None or self.out is not None):
            raise BadInput(f"{self.address} is a dataset repository: give the --store that gets its feature set, and no --out")
        if repository.kind == "model" and (self.out is None or self.store is not None):
            raise BadInput(f"{self.address} is a model repository: give the folder that gets it, --out, and no --store")


def pull(options: PullOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Fetch and verify what is not here yet; raises BadInput, CacheDamaged, CacheMismatch and StoreUnavailable."""
    repository, client = Repository.parse(options.address), hub_client()
    with hub_errors(repository):
        path = client.hf_hub_download(repository.name, MANIFEST, repo_type=repository.kind, revision=repository.pinned())
        manifest = Manifest.from_bytes(Path(path).read_bytes(), repository.of(repository.commit))
    if (manifest.kind == "features") != (repository.kind == "dataset"):
        raise CacheDamaged(f"{repository.of(repository.commit)} holds a {manifest.kind} in a {repository.kind} repository")
    folder = options.out if options.out is not None else staging_folder() / f"pull-{manifest.name}"
    missing = {name: entry for name, entry in manifest.files.items() if not _is_here(folder / name, entry)}
    summary = {
        "kind": manifest.kind, "name": manifest.name, "address": options.address, "files": len(manifest.files),
        "bytes": manifest.total_bytes, "files_to_fetch": len(missing), "bytes_to_fetch": sum(entry.bytes for entry in missing.values()),
    }  # fmt: skip
    if options.dry_run:
        return {**summary, "dry_run": True}
    _fetch(client, repository, manifest.name, missing, folder, on_event)
    if options.store is None:
        return {**summary, "out": str(folder), "verified": True}
    reader = copy_features(FeatureStore.open(str(folder)), manifest.name, FeatureStore.create(options.store), on_event)
    shutil.rmtree(folder, ignore_errors=True)
    return {**summary, "store": options.store, "features": reader.key, "rows": reader.rows, "verified": True}


def _is_here(path: Path, entry: FileEntry) -> bool:
    """Return whether a file is here as pushed; raises CacheMismatch for another file of that name."""
    if not os.path.lexists(path):
        return False
    if path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256:
        return True
    raise CacheMismatch(f"{path} is there and is not the file that was pushed; pull into a new folder, or move it away")


def _fetch(client: "HfApi", repository: Repository, name: str, missing: Mapping[str, FileEntry], folder: Path, on_event: OnEvent) -> None:
    """Fetch files one by one beside their folder, and give each its name when its sha256 is right."""
    done, total = 0, sum(entry.bytes for entry in missing.values())
    temporary = folder / ".pull"
    for file, entry in missing.items():
        with translate_os_errors(folder / file, entry.bytes), hub_errors(repository):
            fetched = Path(
                client.hf_hub_download(
                    repository.name, file, repo_type=repository.kind, revision=repository.pinned(), local_dir=str(temporary)
                )
            )
        if fetched.stat().st_size != entry.bytes or file_sha256(fetched) != entry.sha256:
            fetched.unlink()
            raise CacheDamaged(f"{repository.of(repository.commit)}/{file} is not what was pushed (its sha256 differs); push it again")
        with translate_os_errors(folder / file, entry.bytes):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(folder / file)
        done += entry.bytes
        on_event({"event": "progress", "stage": f"pull {name}", "done": done, "total": total, "unit": "bytes"})
    shutil.rmtree(temporary, ignore_errors=True)
