"""Files of a repository on the Hugging Face hub, at a pinned commit: `hf://datasets/OWNER/NAME@COMMIT/FOLDER`.

A branch can move, and an index would then name images that are no longer there; so only a full commit is accepted. Requests go through
`huggingface_hub`'s own file system, which reads `HF_ENDPOINT` and `HF_TOKEN` (or what `hf auth login` has stored) at its start; a token
never stands in a URL. What the hub refuses (401, 403, 404) is not asked again.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import fsspec

from ..core.errors import BadInput, StoreUnavailable
from .remote_files import RemoteFiles

SCHEME = "hf://"
_PINNED = re.compile(r"hf://(?P<repo>(?:datasets/|spaces/)?[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(?P<path>/.*)?")
_REPOSITORY = re.compile(r"hf://(?P<repo>(?:datasets/|spaces/)?[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]*))?(?P<path>/.*)?")
_REFUSED = (401, 403, 404, 410)

Result = TypeVar("Result")


def is_hub(url: str) -> bool:
    """Return whether a URL or path is on the hub."""
    return url.startswith(SCHEME)


def check_pinned(url: str) -> None:
    """Raise `BadInput` for an address of the hub without a full commit."""
    if _PINNED.fullmatch(url):
        return
    match = _REPOSITORY.fullmatch(url)
    if match is None:
        raise BadInput(f"{url} is no address on the hub: hf://datasets/OWNER/NAME@COMMIT, and a folder behind it if need be")
    repo, revision = match["repo"], match["revision"]
    problem = "has no commit" if not revision else f"is at {revision!r}, which can move"
    raise BadInput(
        f"{url} {problem}: pin it as {SCHEME}{repo}@COMMIT{match['path'] or ''} with all 40 digits from "
        f"https://huggingface.co/{repo}/commits/main, so that the index names the same images tomorrow"
    )


class HubFiles(RemoteFiles):
    """The files of one repository at one commit."""

    def __init__(self, url: str) -> None:
        check_pinned(url)
        super().__init__(_filesystem(os.environ.get("HF_ENDPOINT", ""), hash(os.environ.get("HF_TOKEN"))), url)

    def _call(self, verb: str, path: str, call: Callable[[], Result]) -> Result:
        return super()._call(verb, path, lambda: self._refused_at_once(path, call))

    def _refused_at_once(self, path: str, call: Callable[[], Result]) -> Result:
        """Return the result of `call`; raise what the hub refuses as errors that a retry cannot help."""
        try:
            return call()
        except FileNotFoundError:
            raise
        except Exception as error:  # httpx's errors and the hub's have no common base
            status = _status_of(error)
            if status == 404:
                raise FileNotFoundError(f"{self.address(path)} is not there") from error
            if status in _REFUSED:
                raise StoreUnavailable(
                    f"the hub refuses {self.address(path)} ({status}): it is private, or behind a licence that you accept on its page; "
                    "give this machine your token (`hf auth login`, or HF_TOKEN)"
                ) from error
            raise

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes [start, end), or all, and ask for no more: fsspec's files read megabytes ahead."""
        return self._call("read", path, lambda: bytes(self._filesystem.cat_file(path, start=start, end=end, cache_type="none")))

    def exists(self, path: str) -> bool:
        """Return whether there is such a file or folder; raise `StoreUnavailable` where the hub refuses to say."""
        try:
            self._call("find", path, lambda: self._filesystem.info(path))
        except FileNotFoundError:
            return False
        return True


@lru_cache(maxsize=4)
def _filesystem(endpoint: str, token: int) -> Any:
    """Return the hub's file system, one for an endpoint and a token's hash. It knows what it has listed: a commit stays as it is."""
    return fsspec.filesystem("hf", endpoint=endpoint or None, skip_instance_cache=True)


def _status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error of the hub's client, or of what it was raised from."""
    while error is not None:
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
