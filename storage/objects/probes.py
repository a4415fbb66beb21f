"""Small objects that are made to see whether, and how fast, a store takes and gives bytes; they are removed at once.

probes/<seconds since 1970>-<random>      what a kill left is removed by the next one, an hour later
"""

import contextlib
import secrets
import time
from collections.abc import Iterator

from ..core.errors import StoreUnavailable
from .objects import Objects

_PREFIX = "probes"
_STALE_S = 3600


@contextlib.contextmanager
def probe(objects: Objects, data: bytes) -> Iterator[str]:
    """The key of an object with these bytes, while it is needed; raises `StoreUnavailable` where nothing can be written."""
    key = f"{_PREFIX}/{int(time.time())}-{secrets.token_hex(8)}"
    objects.create(key, [data])
    try:
        yield key
    finally:
        with contextlib.suppress(StoreUnavailable):
            objects.remove(key)
            sweep_probes(objects)
            objects.drop_empty(_PREFIX)


def check_writable(objects: Objects) -> None:
    """Raise `StoreUnavailable` when nothing can be written to a store."""
    with probe(objects, b"probe"):
        pass


def sweep_probes(objects: Objects) -> None:
    """Remove what killed probes left, an hour ago or more."""
    for name in objects.names(_PREFIX):
        begun = name.partition("-")[0]
        if not begun.isdecimal() or "-" not in name or int(begun) < time.time() - _STALE_S:
            objects.remove(f"{_PREFIX}/{name}")
    objects.sweep(_PREFIX)
