"""Write small objects to find out whether, and how fast, a store can be written and read; they are removed at once.

probes/<seconds since 1970>-<random>      one left by a killed process is removed by a later probe, after an hour
"""

import contextlib
import secrets
import time
from collections.abc import Iterator

from ..core.errors import BadInput, StoreUnavailable
from .objects import Objects

_PREFIX = "probes"
_STALE_S = 3600


@contextlib.contextmanager
def probe(objects: Objects, data: bytes) -> Iterator[str]:
    """Yield the key of a temporary object with these bytes; raise `StoreUnavailable` where nothing can be written."""
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


def store_time(objects: Objects) -> float:
    """Return the time now by the clock of the store's server, in seconds since 1970; by this machine's where that cannot be asked."""
    try:
        with probe(objects, b"clock") as key:
            return objects.modified(key) or time.time()
    except (StoreUnavailable, BadInput):  # a store that may only be read, or a dry run
        return time.time()


def sweep_probes(objects: Objects) -> None:
    """Remove probes that killed processes left an hour ago or more."""
    for name in objects.names(_PREFIX):
        created = name.partition("-")[0]
        if not created.isdecimal() or "-" not in name or int(created) < time.time() - _STALE_S:
            objects.remove(f"{_PREFIX}/{name}")
    objects.sweep(_PREFIX)
