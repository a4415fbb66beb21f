"""Replace a damaged file of a store by its correct bytes: the one exception to "nothing published is ever replaced".

That rule protects files that match a record or the digest in a name. A file that matches neither may be replaced by bytes that do match:
the new bytes are complete before the old file goes, the replacement is atomic (a rename, a put), and it is read back. A kill at any moment
leaves either the damaged file or the correct one. A folder in the place of a file is moved aside, not deleted.
"""

import re
import secrets
from collections.abc import Callable

from ..core.errors import CacheDamaged, StoreUnavailable
from ..core.urls import is_url
from .atomic_files import TEMPORARY_PREFIX, translate_os_errors
from .objects import LocalObjects, Objects

Check = Callable[[bytes], object]
"""Raises `CacheDamaged` for bytes that are not those of the file."""
MAX_BIT_FLIP_BYTES = 8 << 10  # 65,536 bits, each some 50 µs to try


def read_or_flaw(objects: Objects, key: str, limit_bytes: int | None = None) -> tuple[bytes | None, str]:
    """Return a file's bytes and "", or the bytes (None: none) and why the file cannot be used; raise `StoreUnavailable` for the network."""
    try:
        data = objects.read(key, limit_bytes)
    except FileNotFoundError:
        return None, "is missing"
    except CacheDamaged as error:
        return None, f"cannot be one of ours ({without_advice(error)})"
    except StoreUnavailable as error:
        if is_url(objects.url):  # the network is no damage of the store
            raise
        return None, f"cannot be read ({error})"
    return data, "" if data else "is empty"


def read_and_check(objects: Objects, key: str, check: Check, limit_bytes: int | None = None) -> tuple[bytes | None, str]:
    """Return a file's bytes and why they are not what they must be, "" when they pass `check`."""
    data, flaw = read_or_flaw(objects, key, limit_bytes)
    if data is not None and not flaw:
        try:
            check(data)
        except CacheDamaged as error:
            return data, without_advice(error)
    return data, flaw


def without_advice(error: Exception) -> str:
    """Return an error's text without its advice on what to run, which an examination gives with each finding itself."""
    return re.sub(r"[;,:]? *(run|remove it|index the source)\b.*`.*", "", str(error), flags=re.S)


def undo_bit_flip(data: bytes | None, check: Check) -> bytes | None:
    """Return the version of a small file that differs in exactly one bit and passes `check`, or None.

    For files that carry or are named by a digest of themselves: no other file than the right one can pass.
    """
    if not data or len(data) > MAX_BIT_FLIP_BYTES:
        return None
    candidate = bytearray(data)
    for position in range(len(data)):
        for bit in range(8):
            candidate[position] ^= 1 << bit
            try:
                check(bytes(candidate))
            except CacheDamaged:
                candidate[position] ^= 1 << bit
            else:
                return bytes(candidate)
    return None


def replace_verified(objects: Objects, key: str, data: bytes) -> None:
    """Write correct bytes over a damaged or missing file and read them back; raise `StoreUnavailable` when they differ."""
    if isinstance(objects, LocalObjects) and (objects.root / key).is_dir():
        set_aside(objects, key)
    objects.replace(key, data)
    if objects.read(key) != data:
        raise StoreUnavailable(f"{objects.url}/{key} does not give back what was just written there; check the disk, then repair again")


def set_aside(objects: Objects, key: str) -> None:
    """Move a file or folder that no reader can use out of the way: under a temporary name in a local store, deleted from a remote one."""
    if not isinstance(objects, LocalObjects):
        objects.remove(key)
        return
    path = objects.root / key
    with translate_os_errors(path, 0):
        path.rename(path.with_name(f"{TEMPORARY_PREFIX}damaged-{secrets.token_hex(4)}-{path.name}"[:200]))
