"""How a damaged file of a store gets its bytes back: the one exception to "nothing published is ever replaced".

The rule protects what a record or a name's digest vouches for. A file that those refuse is vouched for by nobody, so it may be replaced,
by bytes that they vouch for: those are whole before the old ones go, in one atomic step (a rename, a put), and are read back. A kill at any
moment leaves the damaged file or the whole one. Whatever lies in the place of a file (a folder) is moved aside, not deleted.
"""

import re
import secrets
from collections.abc import Callable

from ..core.errors import CacheDamaged, StoreUnavailable
from ..core.urls import is_url
from .atomic_files import TEMPORARY_PREFIX, refusals
from .objects import LocalObjects, Objects

Check = Callable[[bytes], object]
"""Raises `CacheDamaged` for bytes that are not the file's."""
MOST_FLIP_BYTES = 8 << 10  # 65,536 bits, each some 50 µs to try


def held(objects: Objects, key: str, limit_bytes: int | None = None) -> tuple[bytes | None, str]:
    """A file's bytes and "", or what is there (None: nothing) and why that is none of ours; raises `StoreUnavailable` of a network."""
    try:
        data = objects.read(key, limit_bytes)
    except FileNotFoundError:
        return None, "is missing"
    except CacheDamaged as error:
        return None, f"cannot be one of ours ({reason(error)})"
    except StoreUnavailable as error:
        if is_url(objects.url):  # the network is no damage of the store
            raise
        return None, f"cannot be read ({error})"
    return data, "" if data else "is empty"


def flaw_of(objects: Objects, key: str, check: Check, limit_bytes: int | None = None) -> tuple[bytes | None, str]:
    """A file's bytes, and why they are not what they must be; "" when they are."""
    data, flaw = held(objects, key, limit_bytes)
    if data is not None and not flaw:
        try:
            check(data)
        except CacheDamaged as error:
            return data, reason(error)
    return data, flaw


def reason(error: Exception) -> str:
    """What an error says has happened, without its advice: whoever examines a store gives that with each finding."""
    return re.sub(r"[;,:]? *(run|remove it|index the source)\b.*`.*", "", str(error), flags=re.S)


def unflipped(data: bytes | None, check: Check) -> bytes | None:
    """The one version of a small file that differs in a single bit and passes its check, None when there is none.

    For files that carry or are named by a digest of themselves: no other file than the right one can pass.
    """
    if not data or len(data) > MOST_FLIP_BYTES:
        return None
    tried = bytearray(data)
    for place in range(len(data)):
        for bit in range(8):
            tried[place] ^= 1 << bit
            try:
                check(bytes(tried))
            except CacheDamaged:
                tried[place] ^= 1 << bit
            else:
                return bytes(tried)
    return None


def put(objects: Objects, key: str, data: bytes) -> None:
    """Put whole bytes in the place of damaged ones, or of nothing, and read them back; raises `StoreUnavailable`."""
    if isinstance(objects, LocalObjects) and (objects.root / key).is_dir():
        set_aside(objects, key)
    objects.replace(key, data)
    if objects.read(key) != data:
        raise StoreUnavailable(f"{objects.url}/{key} does not give back what was just written there; check the disk, then repair again")


def set_aside(objects: Objects, key: str) -> None:
    """Take away what no reader can use and nothing can mend; in a folder it keeps a temporary name beside its old place."""
    if not isinstance(objects, LocalObjects):
        objects.remove(key)
        return
    path = objects.root / key
    with refusals(path, 0):
        path.rename(path.with_name(f"{TEMPORARY_PREFIX}damaged-{secrets.token_hex(4)}-{path.name}"[:200]))
