"""A folder tree of this machine: links to folders are followed, as torchvision and timm follow them, and nothing but files is opened.

A link that leads back to a folder above itself would never end and is left out; the same folder behind two links is there twice, as the
user wrote it. A folder that cannot be listed is an error, because nobody knows what would be missing.
"""

import os
import stat

from ..core.errors import BadInput
from .found import LeftOut, Skipped, is_hidden, shown

_LINK_BACK = "links that lead back to a folder above them"
_NO_FILES = "pipes, sockets and devices"


def list_folder(root: str) -> list[str]:
    """Paths below a folder that are no folders to look into, relative to it, in no order; raise `BadInput` naming a folder."""
    if not os.path.isdir(root):
        raise BadInput(f"the source {shown(root)} is neither a folder nor a file, so it is not opened; give one of the two")
    found: list[str] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        relative, above = waiting.pop()
        try:
            here = os.stat(os.path.join(root, relative))
            if (here.st_dev, here.st_ino) in above:
                found.append(relative)  # a folder where a file is expected: `not_a_file` says what it is
                continue
            with os.scandir(os.path.join(root, relative)) as entries:
                for entry in entries:
                    path = os.path.join(relative, entry.name)
                    if _is_folder(entry) and not is_hidden(entry.name):
                        waiting.append((path, (*above, (here.st_dev, here.st_ino))))
                    else:
                        found.append(path)
        except OSError as error:
            raise BadInput(
                f"the folder {shown(error.filename or relative)} cannot be read ({error.strerror}), so nobody knows which images would be "
                "missing; make it readable, or move it out of the source"
            ) from error
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or links to one, False for a dead link; raise PermissionError where that cannot be seen."""
    try:
        return entry.is_dir()
    except PermissionError:
        raise
    except OSError:  # a link to itself
        return False


def not_a_file(full: str, path: str) -> Skipped | LeftOut | None:
    """Return what a path is counted as when it is no regular file, None when it is one; nothing is opened, because a pipe would block."""
    try:
        mode = os.stat(full).st_mode
    except FileNotFoundError:
        return Skipped(shown(path), "a link to something that is not there" if os.path.islink(full) else "gone since it was listed")
    except OSError as error:
        return Skipped(shown(path), f"cannot be read ({error.strerror})")
    if stat.S_ISDIR(mode):
        return LeftOut(shown(path), _LINK_BACK)
    return None if stat.S_ISREG(mode) else LeftOut(shown(path), _NO_FILES)
