"""Where this machine keeps what can be made or fetched again: weights, downloads, copies of shards and runs, results of evaluations.

`$EUPE_PIPELINE_HOME` where it is set, else `~/.cache/eupe-pipeline`. Accounts of containers and clusters often have no home, or one that
nobody may write to: then a folder of this user alone below the temporary folder, which is said once. It must be this user's own, because
whoever made it could put other weights there. What is named by the user is taken as it is: a folder that refuses is an error there.
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
    """The folder for everything that this package keeps on this machine; it need not exist. Raises `BadInput` where there is no place."""
    named = os.environ.get(HOME_VARIABLE)
    return expanded(named) if named else _unnamed(home_folder(), tempfile.gettempdir())


def weights_folder() -> Path:
    """Where teachers' weights are looked for; it need not exist. A home that may only be read still gives the weights that lie there."""
    own = own_cache()
    return own / "weights" if own is not None and (own / "weights").is_dir() else new_weights_folder()


def new_weights_folder() -> Path:
    """Where weights that are fetched are put: `weights_folder` may be one that can only be read."""
    return cache_home() / "weights"


def downloads_folder() -> Path:
    """Packages as they came."""
    return cache_home() / "downloads"


def shards_folder() -> Path:
    """Copies of the shards of remote stores."""
    return cache_home() / "shards"


def runs_folder() -> Path:
    """Copies of the runs that train here and lie at a URL."""
    return cache_home() / "runs"


def fetched_runs_folder() -> Path:
    """What was fetched of runs at URLs to be read."""
    return cache_home() / "fetched-runs"


def evaluations_folder() -> Path:
    """Results that belong to no model's folder, and the store that evaluations use when none is given."""
    return cache_home() / "evaluations"


def own_cache() -> Path | None:
    """`~/.cache/eupe-pipeline`, whether it can be written or not; None without a home or where another place is named."""
    home = None if os.environ.get(HOME_VARIABLE) else home_folder()
    return None if home is None else home / ".cache" / "eupe-pipeline"


def home_folder() -> Path | None:
    """The user's home, None where there is none: no $HOME, and no entry in the user database."""
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home if home.is_absolute() else None


def name_user() -> None:
    """Give a user without an entry in the user database a name: libraries ask for one (torch.compile's cache, for its folder)."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def expanded(path: Path | str) -> Path:
    """A path with its `~` resolved, absolute; raises `BadInput` where there is no such home."""
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, KeyError) as error:
        raise BadInput(f"{path} begins with ~, and this user has no home folder ({error}); set HOME, or give the whole path") from error


def can_be_written(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, lets this user make files."""
    for one in (folder, *folder.parents):
        if os.path.lexists(one):
            return os.path.isdir(one) and os.access(one, os.W_OK | os.X_OK)
    return False


@functools.cache  # said once
def _unnamed(home: Path | None, temporary: str) -> Path:
    if home is not None and can_be_written(home / ".cache" / "eupe-pipeline"):
        return home / ".cache" / "eupe-pipeline"
    why = "this user has no home folder" if home is None else f"{home / '.cache'} cannot be written"
    other = Path(temporary) / f"eupe-pipeline-{os.getuid()}"
    try:
        other.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(other)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{other} belongs to another user, or others may write to it")
        if not os.access(other, os.W_OK | os.X_OK):
            raise PermissionError(f"{other} cannot be written")
    except OSError as error:
        raise BadInput(f"there is no place for downloads and results: {why}, and {error}; set {HOME_VARIABLE} to a folder") from error
    _LOG.warning("%s, so %s is used; set %s to choose another folder", why, other, HOME_VARIABLE)
    return other
