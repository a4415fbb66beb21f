"""A repository of the Hugging Face hub as `push` and `pull` see it: its address, requests to it, and what its refusals mean.

    hub:OWNER/NAME@COMMIT              a model repository: exports and runs
    hub:datasets/OWNER/NAME@COMMIT     a dataset repository: feature sets

`huggingface_hub` makes every request: it reads `HF_ENDPOINT`, and the token from `HF_TOKEN` or from where `hf auth login` has put it. No
token is taken from the command line, and none is recorded or shown.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...storage.core.errors import BadInput, StoreUnavailable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepositoryKind = Literal["model", "dataset"]
_ADDRESS = re.compile(r"hub:(?P<datasets>datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """One repository, and a commit of it where one was named."""

    kind: RepositoryKind
    name: str
    """OWNER/NAME."""
    commit: str | None = None

    @classmethod
    def parse(cls, address: str) -> "Repository":
        """Return the repository of an address; raises BadInput for another form, and for a branch or a tag."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise BadInput(
                f"{address!r} is no repository of the hub: hub:OWNER/NAME for exports and runs, hub:datasets/OWNER/NAME for feature sets"
            )
        revision = match["revision"]
        repository = cls("dataset" if match["datasets"] else "model", match["name"], revision)
        if revision is not None and not _COMMIT.fullmatch(revision):
            raise BadInput(
                f"{address} names {revision!r}, which can move: give {repository.of(None)}@COMMIT with all 40 digits from {repository.page}"
            )
        return repository

    def of(self, commit: str | None) -> str:
        """Return the address at a commit, or without one."""
        return f"hub:{'datasets/' if self.kind == 'dataset' else ''}{self.name}{'' if commit is None else f'@{commit}'}"

    @property
    def page(self) -> str:
        """Return where people see its commits."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}/commits/main"

    def pinned(self) -> str:
        """Return the commit; raises BadInput where none was named."""
        if self.commit is None:
            raise BadInput(
                f"{self.of(None)} has no commit: give {self.of(None)}@COMMIT, as `push` printed it or as {self.page} lists them, so that "
                "the same command gives the same files tomorrow"
            )
        return self.commit


def hub_client() -> "HfApi":
    """Return the hub's client, whose own progress bars are off."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextlib.contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Raise what the hub refuses as BadInput that says what to do, and what may pass as StoreUnavailable."""
    from huggingface_hub import errors

    where = repository.of(repository.commit)
    try:
        yield
    except errors.GatedRepoError as error:
        raise BadInput(
            f"{where} is behind terms that you accept on {repository.page}; then run the same command with your token"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.LocalTokenNotFoundError) as error:
        raise BadInput(
            f"the hub shows no {where}: it does not exist, or it is private and needs your token (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        text = str(error).splitlines()[0]
        if status in (401, 403):
            raise BadInput(
                f"the hub does not let this token write to {where}, or there is none ({text}): `hf auth login` with a token that may write"
            ) from error
        if status == 404:
            raise BadInput(f"{where} lacks a file ({text}); was it pushed by `eupe-pipeline push`, and to its end?") from error
        raise StoreUnavailable(f"the hub refused a request for {where} ({text}); run the same command again to go on") from error
    except errors.LocalEntryNotFoundError as error:
        raise StoreUnavailable(f"the hub does not answer for {where}; run the same command again to go on") from error
    except (errors.OfflineModeIsEnabled, RuntimeError, OSError) as error:
        if isinstance(error, BadInput | StoreUnavailable):
            raise
        raise StoreUnavailable(
            f"the hub does not answer for {where} ({str(error).splitlines()[0]}); run the same command again to go on"
        ) from error
