"""Find the runs that another run starts from or is taught by: a folder, or the URL of a run that was trained with `--out URL`.

A run at a URL is fetched once: its model (verified against the manifest, file by file) and what says where that comes from. It lies below
`fetched-runs/` in a folder that is named by the URL and by the manifest, so that a run that was trained again is fetched again, and a copy
that was altered on the disk is found and replaced. Checkpoints stay where they are.
"""

from collections.abc import Iterable
from pathlib import Path

from ...storage.core.cache_home import fetched_runs_folder
from ...storage.core.errors import BadInput
from ...storage.core.identity import digest, file_sha256, short
from ...storage.core.urls import is_url
from ...storage.objects.atomic_files import write_atomically
from ...storage.objects.objects import open_objects
from ...student.export.lineage import PARTS
from ...student.model.ranks import Ranks
from .remote_run import Manifest, RunCopy

_MODEL = "model"
_RECORDS = ("recipe.json", "identities.json", "imported.json", "summary.json")  # an imported model has no adapters, and says so here


def local_run(run: Path | str) -> Path:
    """Return the run's folder on this machine: itself, or a copy of what its model needs.

    Raises `BadInput` for a URL without a finished run, `CacheDamaged` for a file that differs from its manifest, `StoreUnavailable`.
    """
    url = str(run).rstrip("/")
    if not is_url(url):
        return Path(run)
    copy = RunCopy(open_objects(url))
    manifest = copy.manifest(_MODEL)
    if manifest is None:
        what = "it is not finished" if copy.run_id() is not None else "no run was trained there"
        raise BadInput(f"{url} holds no trained model (no model/manifest.json): {what}; train with --out {url} to its end first")
    around, _, last = url.rpartition("/")
    part = last if last in PARTS and copy.run_id() is None else None  # its records are those of the run around it
    name = url.rpartition("/")[2] if part is None else around.rpartition("/")[2]
    folder = fetched_runs_folder() / f"{name}-{short(digest({'url': url, 'model': manifest}))}"
    for record in _RECORDS:
        _fetch_record(copy if part is None else RunCopy(open_objects(around)), record, folder)
    run_folder = folder if part is None else folder / part
    if not _is_whole(run_folder / _MODEL, manifest):
        copy.fetch_folder(_MODEL, run_folder / _MODEL)
    return run_folder


def fetch_once(runs: Iterable[str], ranks: Ranks) -> None:
    """Have the first rank fetch the runs that are URLs, so that the others of its machine find them."""
    remote = [run for run in runs if is_url(run)]
    if ranks.first:
        for run in remote:
            local_run(run)
    if remote:
        ranks.barrier()


def _fetch_record(copy: RunCopy, record: str, run_folder: Path) -> None:
    try:
        data = copy.objects.read(record)
    except FileNotFoundError:
        return
    write_atomically(run_folder / record, data)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return all(
        (folder / file).is_file() and (folder / file).stat().st_size == entry["bytes"] and file_sha256(folder / file) == entry["sha256"]
        for file, entry in manifest.items()
    )
