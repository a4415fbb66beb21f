"""Say whose a file or folder is that the system refuses: several users share a store, and only its owner can let the others in."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

REFUSED = (errno.EACCES, errno.EPERM)
_ADVICE = "its owner can let a group write (chgrp -R GROUP; chmod -R g+rwX; chmod g+s on its folders; umask 002) or read (chmod -R g+rX)"


def whose(path: Path | str) -> str:
    """Return owner, group and mode of the first folder on the way to a path that may not be entered, else of the path or its folder.

    Also who asks, and what the owner can do. "" where not even that can be seen.
    """
    lexical = Path(os.path.abspath(path))
    closed = [parent for parent in reversed(lexical.parents) if os.path.lexists(parent) and not os.access(parent, os.X_OK)]
    for place in (*closed[:1], lexical, *lexical.parents):
        try:
            status = os.stat(place)
        except OSError:
            continue
        owner, mode = f"{_user(status.st_uid)}, group {_group(status.st_gid)}", stat.filemode(status.st_mode)
        return f"{place} belongs to {owner}, with mode {mode}, and this process is {_user(os.geteuid())}; {_ADVICE}"
    return ""


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except (KeyError, OSError):
        return f"uid {number}"


def _group(number: int) -> str:
    try:
        return f"{grp.getgrgid(number).gr_name} (gid {number})"
    except (KeyError, OSError):
        return f"gid {number}"
