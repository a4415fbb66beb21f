"""Leases: a run that reads a set takes a lease on it, and `prune` leaves the set alone until the lease is released or expires.

    leases/<features key>/<owner>-<expiry in seconds since 1970>.json      {"process": …}, the process that holds it (`process`)

A lease whose process is known to have ended is over, whatever its expiry; for another machine or container only the clock counts. A renewal
is a new file with a later expiry, after which the old one is removed. Clocks of machines may differ by minutes, so lease for an hour and
renew every ten minutes. Nothing else in the store depends on a clock.
"""

import json
import math
import re
import secrets
import time
from collections.abc import Callable

from ..core.errors import BadInput, CacheDamaged, StoreUnavailable
from ..core.identity import canonical_json
from ..core.process import has_ended, this_process
from ..objects.objects import Objects

LEASE_SECONDS = 3600
_MAX_BYTES = 4096
_NAME = re.compile(r"([A-Za-z0-9_.-]+)-(\d{1,15})\.json")


class Lease:
    """A running reader's lease on one set; as a context manager it is released at the end."""

    def __init__(
        self, objects: Objects, key: str, owner: str, seconds: int = LEASE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects, self._prefix, self._seconds, self._clock = objects, f"leases/{key}", seconds, clock
        self._owner = re.sub(r"[^A-Za-z0-9_.-]", "_", owner)[:60] + f"-{secrets.token_hex(4)}"
        self._content = canonical_json({"process": this_process()})
        self._lease_key = ""
        self.renew()

    def renew(self) -> None:
        """Extend the lease to `seconds` from now."""
        name = f"{self._prefix}/{self._owner}-{int(self._clock()) + self._seconds}.json"
        self._objects.create(name, [self._content])
        if self._lease_key and self._lease_key != name:
            self._objects.remove(self._lease_key)
        self._lease_key = name

    def release(self) -> None:
        """Release the lease."""
        if self._lease_key:
            self._objects.remove(self._lease_key)
        self._lease_key = ""

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holders(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> list[str]:
    """Return the owners of the active leases on a set."""
    return sorted({owner for owner, _ in _active(objects, key, clock)})


def _active(objects: Objects, key: str, clock: Callable[[], float]) -> list[tuple[str, int]]:
    """Return owner and expiry of the active leases."""
    active = []
    for name in objects.names(f"leases/{key}"):
        match = _NAME.fullmatch(name)
        if match is not None and int(match[2]) > clock() and not _abandoned(objects, f"leases/{key}/{name}"):
            active.append((match[1], int(match[2])))
    return active


def _abandoned(objects: Objects, where: str) -> bool:
    """Return whether the process that holds a lease has ended; False where that is not recorded or cannot be read."""
    try:
        return has_ended(json.loads(objects.read(where, _MAX_BYTES))["process"])
    except FileNotFoundError:  # given back a moment ago
        return True
    except (ValueError, KeyError, TypeError, RecursionError, CacheDamaged, StoreUnavailable):
        return False


def drop_expired(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> None:
    """Remove the leases on a set that have ended: expired ones, and those of killed runs."""
    for name in objects.names(f"leases/{key}"):
        match, where = _NAME.fullmatch(name), f"leases/{key}/{name}"
        if match is not None and (int(match[2]) <= clock() or _abandoned(objects, where)):
            objects.remove(where)
    objects.sweep(f"leases/{key}")


def refuse_leased(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> None:
    """Raise `BadInput` naming the holders while a set has active leases."""
    active = _active(objects, key, clock)
    if active:
        minutes = math.ceil((max(expiry for _, expiry in active) - clock()) / 60)
        owners = ", ".join(sorted({owner for owner, _ in active}))
        raise BadInput(
            f"{key} is being read by {owners}; stop those runs, or wait until their leases have run "
            f"out (in {minutes} min at the latest, unless they are renewed)"
        )
