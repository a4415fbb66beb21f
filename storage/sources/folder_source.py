"""List a local folder tree: links to folders are followed, as torchvision and timm do, and files are not opened.

A link back to one of its parent folders would never end and is left out; a folder behind two links is listed twice, as the user wrote it. A
folder that cannot be listed is an error, because unknown images would be missing.
"""

import os
import stat

from ..core.errors import BadInput
from .source_items import LeftOut, Skipped, is_hidden, printable

_LINK_BACK = "links that lead back to a folder above them"
_NO_FILES = "pipes, sockets and devices"


def list_folder(root: str) -> list[str]:
    """Return the paths below a folder relative to it, unsorted, folders themselves left out; raise `BadInput` naming a folder."""
    if not os.path.isdir(root):
        raise BadInput(f"the source {printable(root)} is neither a folder nor a file, so it is not opened; give one of the two")
    paths: list[str] = []
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        relative, ancestors = pending.pop()
        try:
            status = os.stat(os.path.join(root, relative))
            if (status.st_dev, status.st_ino) in ancestors:
                paths.append(relative)  # a folder where a file is expected: `not_a_file` says what it is
                continue
            with os.scandir(os.path.join(root, relative)) as entries:
                for entry in entries:
                    path = os.path.join(relative, entry.name)
                    if _is_folder(entry) and not is_hidden(entry.name):
                        pending.append((path, (*ancestors, (status.st_dev, status.st_ino))))
                    else:
                        paths.append(path)
        except OSError as error:
            raise BadInput(
                f"the folder {printable(error.filename or relative)} cannot be read ({error.strerror}), so nobody knows which images "
                "would be missing; make it readable, or move it out of the source"
            ) from error
    return paths


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
        return Skipped(printable(path), "a link to something that is not there" if os.path.islink(full) else "gone since it was listed")
    except OSError as error:
        return Skipped(printable(path), f"cannot be read ({error.strerror})")
    if stat.S_ISDIR(mode):
        return LeftOut(printable(path), _LINK_BACK)
    return None if stat.S_ISREG(mode) else LeftOut(printable(path), _NO_FILES)
