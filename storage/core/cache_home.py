"""The local cache folder: files that can be made or downloaded again (weights, downloads, copies of shards and runs, evaluation results).

`$EUPE_PIPELINE_HOME` where it is set, else `~/.cache/eupe-pipeline`. Accounts of containers and clusters often have no home, or a read-only
one: then a private folder below the temporary folder is used, with a warning. It must belong to this user, because whoever owns it could
put other weights there. A folder that the user has configured is used as it is: if it cannot be written, that is an error.
"""

import functools
import getpass
import logging
import os
import stat
import tempfile
from pathlib import Path

from .errors import BadInput

HOME_VARIABLE = "EUPE_PIPELINE_HOME"
_LOG = logging.getLogger(__name__)


def cache_home() -> Path:
    """Return the folder of all local caches; it need not exist. Raise `BadInput` where no folder can be used."""
    configured = os.environ.get(HOME_VARIABLE)
    return expand_path(configured) if configured else _default_home(home_folder(), tempfile.gettempdir())


def weights_folder() -> Path:
    """Return the folder in which weights are looked for; it need not exist. A read-only home still provides its weights."""
    own = default_cache()
    return own / "weights" if own is not None and (own / "weights").is_dir() else new_weights_folder()


def new_weights_folder() -> Path:
    """Return the folder to which weights are downloaded: `weights_folder` may be read-only."""
    return cache_home() / "weights"


def downloads_folder() -> Path:
    """Return the folder of downloaded packages."""
    return cache_home() / "downloads"


def shards_folder() -> Path:
    """Return the folder with copies of the shards of remote stores."""
    return cache_home() / "shards"


def forwards_folder() -> Path:
    """Return the folder of tokens that an extraction under way needs again."""
    return cache_home() / "forwards"


def runs_folder() -> Path:
    """Return the folder with local copies of runs at a URL that train here."""
    return cache_home() / "runs"


def fetched_runs_folder() -> Path:
    """Return the folder with copies of runs at URLs, for reading."""
    return cache_home() / "fetched-runs"


def staging_folder() -> Path:
    """Return the folder of what is on its way to or from the hub."""
    return cache_home() / "hub"


def evaluations_folder() -> Path:
    """Return the folder of results that belong to no model's folder, and of the default store of evaluations."""
    return cache_home() / "evaluations"


def default_cache() -> Path | None:
    """Return `~/.cache/eupe-pipeline`, writable or not; None without a home or where another folder is configured."""
    home = None if os.environ.get(HOME_VARIABLE) else home_folder()
    return None if home is None else home / ".cache" / "eupe-pipeline"


def home_folder() -> Path | None:
    """Return the user's home; None without $HOME and an entry in the user database."""
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home if home.is_absolute() else None


def name_user() -> None:
    """Set LOGNAME for a user without an entry in the user database: libraries ask for a name (torch.compile, for its cache folder)."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def expand_path(path: Path | str) -> Path:
    """Return a path with `~` expanded, absolute; raise `BadInput` where there is no such home."""
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, KeyError) as error:
        raise BadInput(f"{path} begins with ~, and this user has no home folder ({error}); set HOME, or give the whole path") from error


def can_be_written(folder: Path) -> bool:
    """Return whether this user can create files in a folder, or in its nearest existing ancestor."""
    for ancestor in (folder, *folder.parents):
        if os.path.lexists(ancestor):
            return os.path.isdir(ancestor) and os.access(ancestor, os.W_OK | os.X_OK)
    return False


@functools.cache  # said once
def _default_home(home: Path | None, temporary: str) -> Path:
    if home is not None and can_be_written(home / ".cache" / "eupe-pipeline"):
        return home / ".cache" / "eupe-pipeline"
    why = "this user has no home folder" if home is None else f"{home / '.cache'} cannot be written"
    fallback = Path(temporary) / f"eupe-pipeline-{os.getuid()}"
    try:
        fallback.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(fallback)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f"{fallback} belongs to another user, or others may write to it")
        if not os.access(fallback, os.W_OK | os.X_OK):
            raise PermissionError(f"{fallback} cannot be written")
    except OSError as error:
        raise BadInput(f"there is no place for downloads and results: {why}, and {error}; set {HOME_VARIABLE} to a folder") from error
    _LOG.warning("%s, so %s is used; set %s to choose another folder", why, fallback, HOME_VARIABLE)
    return fallback
