"""Weights from the Hugging Face hub, pinned to a commit: `OWNER/NAME@COMMIT`.

A branch or a tag can move, and the same command would then give other tokens; so only a full commit is accepted, and the sha256 of the
downloaded file goes into the identity as any other file's does. Files are kept in the hub's own cache, where earlier downloads are found; a
second run needs no network. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to the hub's own tools. Downloads happen where the command
runs: workers on other machines need access to that cache, or get the file by `--weights`.
"""

import os
import re
from pathlib import Path

from ...storage.core.cache_home import weights_folder
from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.core.urls import absolute
from .sharded import INDEX_SUFFIX, weight_names, weights_in

HUB_PREFIX = "hub:"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"model{INDEX_SUFFIX}"
_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repository(text: str) -> bool:
    """Return whether a text can be `OWNER/NAME` or `OWNER/NAME@REVISION`."""
    return _ADDRESS.fullmatch(text) is not None


def local_weights(weights: Path | None) -> Path | None:
    """Return a local weight file: the path made absolute, or the file of `hub:OWNER/NAME@COMMIT`, downloaded if necessary."""
    address = str(weights)
    if weights is None:
        return None
    if not address.startswith(HUB_PREFIX):
        return Path(absolute(address))
    return weights_in(fetch_model(address.removeprefix(HUB_PREFIX)))


class NotInRepository(BadInput):
    """A repository has no file of that name at that commit."""


def fetch_model(address: str, records: tuple[tuple[str, ...], ...] = ()) -> Path:
    """Return the folder that holds a pinned repository's weights, in one file or in several with their index.

    Of each of `records` the first name that the repository has is fetched, too. Raises as `fetch` does.
    """
    for names in records:
        _fetch_first(address, names)
    if _fetch_first(address, (WEIGHTS_FILE, INDEX_FILE)) == WEIGHTS_FILE:
        return fetch(address, (WEIGHTS_FILE,))
    return fetch(address, tuple(weight_names(fetch(address, (INDEX_FILE,)) / INDEX_FILE)))


def _fetch_first(address: str, names: tuple[str, ...]) -> str:
    """Return the name of the first file that is in the cache, or else of the first that the repository has, which is fetched."""
    for name in names:
        if _is_cached(address, name):
            return name
    refused = None
    for name in names:
        try:
            fetch(address, (name,))
        except NotInRepository as error:
            refused = refused or error
        else:
            return name
    assert refused is not None
    raise refused


def _is_cached(address: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    repo, commit = _parse_pinned(address)
    return isinstance(try_to_load_from_cache(repo, name, revision=commit), str)


def fetch(address: str, files: tuple[str, ...]) -> Path:
    """Return the folder that holds these files of a pinned repository, downloading what is missing.

    Raise BadInput for an address without a commit, a missing repository or file, and a licence that was not accepted; StoreUnavailable when
    the hub does not answer.
    """
    from huggingface_hub import errors, hf_hub_download

    repo, commit = _parse_pinned(address)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        paths = [Path(hf_hub_download(repo, name, revision=commit, endpoint=endpoint)) for name in files]
    except errors.GatedRepoError as error:
        raise BadInput(
            f"the weights of {repo} are behind a licence: read and accept it at https://huggingface.co/{repo}, then give this machine your "
            f"token (`hf auth login`, or HF_TOKEN); or download {WEIGHTS_FILE} there and put it into {weights_folder()} or behind --weights"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise BadInput(
            f"the hub shows no {repo} at {commit[:12]}…: it does not exist, was removed, or is private and needs your token (HF_TOKEN); "
            f"see https://huggingface.co/{repo}/commits/main"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise NotInRepository(
            f"{repo} at {commit[:12]}… lacks one of {', '.join(files)}; a PyTorch checkpoint must be downloaded and converted to "
            "safetensors (`eupe-pipeline import-weights`, `convert-weights`)"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise StoreUnavailable(
            f"the hub does not answer for {repo} ({str(error).splitlines()[0]}); where it cannot be reached, download {', '.join(files)} "
            f"elsewhere and put them into {weights_folder()}, or give --weights or hf:FOLDER"
        ) from error
    return paths[0].parent


def _parse_pinned(address: str) -> tuple[str, str]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise BadInput(f"{address!r} is no repository of the hub: OWNER/NAME@COMMIT")
    repo, revision = match["repo"], match["revision"]
    if revision is None or not _COMMIT.fullmatch(revision):
        problem = "without a commit" if revision is None else f"at {revision!r}, which can move"
        raise BadInput(
            f"{repo} {problem}: pin it as {repo}@COMMIT with all 40 digits from https://huggingface.co/{repo}/commits/main, so that the "
            "same command gives the same teacher tomorrow"
        )
    return repo, revision
