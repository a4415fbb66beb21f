"""Weights from the Hugging Face hub, pinned to a commit: `OWNER/NAME@COMMIT`.

A branch or a tag can move, and then the same command would make other tokens tomorrow; so only a full commit is taken, and the sha256 of
the file that came goes into the identity as any other's does. Files land in the hub's own cache, where earlier downloads count; a second
run asks the network for nothing. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to the hub's own tools. Downloads happen where the
command runs: workers on other machines need to see that cache, or get the file by `--weights`.
"""

import os
import re
from pathlib import Path

from ...storage.core.cache_home import weights_folder
from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.core.urls import absolute

HUB_PREFIX = "hub:"
WEIGHTS_FILE = "model.safetensors"
_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repository(text: str) -> bool:
    """Whether this can be `OWNER/NAME` or `OWNER/NAME@REVISION`."""
    return _ADDRESS.fullmatch(text) is not None


def local_weights(weights: Path | None) -> Path | None:
    """A weight file on this machine: the path, made absolute, or what `hub:OWNER/NAME@COMMIT` names, fetched when it is not there yet."""
    address = str(weights)
    if weights is None:
        return None
    if not address.startswith(HUB_PREFIX):
        return Path(absolute(address))
    return fetch(address.removeprefix(HUB_PREFIX), (WEIGHTS_FILE,)) / WEIGHTS_FILE


def fetch(address: str, files: tuple[str, ...]) -> Path:
    """The folder that holds these files of a pinned repository.

    Raises BadInput for an address without a commit, a repository or file that is not there, and a licence that was not accepted;
    StoreUnavailable when the hub does not answer.
    """
    from huggingface_hub import errors, hf_hub_download

    repo, commit = _pinned(address)
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
        raise BadInput(
            f"{repo} at {commit[:12]}… lacks one of {', '.join(files)}; a PyTorch checkpoint must be downloaded and converted to "
            "safetensors (`eupe-pipeline import-weights`), one in several files be saved as one"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise StoreUnavailable(
            f"the hub does not answer for {repo} ({str(error).splitlines()[0]}); where it cannot be reached, download {', '.join(files)} "
            f"elsewhere and put them into {weights_folder()}, or give --weights or hf:FOLDER"
        ) from error
    return paths[0].parent


def _pinned(address: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise BadInput(f"{address!r} is no repository of the hub: OWNER/NAME@COMMIT")
    repo, revision = found["repo"], found["revision"]
    if revision is None or not _COMMIT.fullmatch(revision):
        said = "without a commit" if revision is None else f"at {revision!r}, which can move"
        raise BadInput(
            f"{repo} {said}: pin it as {repo}@COMMIT with all 40 digits from https://huggingface.co/{repo}/commits/main, so that the same "
            "command gives the same teacher tomorrow"
        )
    return repo, revision
