"""Leases: a run that reads a set takes a lease on it, and `prune` leaves the set alone until the lease is released or expires.

    leases/<features key>/<owner>-<expiry in seconds since 1970>.json      {"process": …, "seconds": 3600}, who holds it and for how long

A lease whose process is known to have ended is over, whatever its expiry (`process`). For another machine or container a clock decides, the
one of the store's server: the lease's age is the time between its file and one that is written now, so machines whose clocks differ by
hours neither end each other's leases nor keep dead ones. A renewal is a new file with a later expiry, after which the old one is removed.
Where the server gives no times, or nothing can be written, this machine's clock is compared, with the expiry if need be: clocks must then
agree within 50 minutes, because a lease lasts an hour and is renewed every ten minutes. Nothing else in the store depends on a clock.
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
from ..objects.probes import store_time

LEASE_SECONDS = 3600
_NONSENSE_S = 86_400.0  # a file's time that lies further ahead than this says nothing, and its lease would never end
_MAX_BYTES = 4096
_NAME = re.compile(r"([A-Za-z0-9_.-]+)-(\d{1,15})\.json")
Clock = Callable[[], float]
"""A clock that this process and all holders share, instead of the store's."""


class Lease:
    """A running reader's lease on one set; as a context manager it is released at the end."""

    def __init__(self, objects: Objects, key: str, owner: str, seconds: int = LEASE_SECONDS, clock: Clock = time.time) -> None:
        self._objects, self._prefix, self._seconds, self._clock = objects, f"leases/{key}", seconds, clock
        self._owner = re.sub(r"[^A-Za-z0-9_.-]", "_", owner)[:60] + f"-{secrets.token_hex(4)}"
        self._content = canonical_json({"process": this_process(), "seconds": seconds})
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


def holders(objects: Objects, key: str, clock: Clock | None = None) -> list[str]:
    """Return the owners of the active leases on a set."""
    return sorted({owner for owner, left_s in _leases(objects, key, clock).values() if left_s > 0})


def _leases(objects: Objects, key: str, clock: Clock | None) -> dict[str, tuple[str, float]]:
    """Return the owner of each lease by its key, and how many seconds it has left; 0 or less of one that has ended."""
    found: dict[str, tuple[str, float]] = {}
    now: float | None = None
    for name in objects.names(f"leases/{key}"):
        match, where = _NAME.fullmatch(name), f"leases/{key}/{name}"
        if match is None:
            continue
        ended, seconds = _holder(objects, where)
        if ended:
            found[where] = match[1], 0.0
        elif clock is not None:
            found[where] = match[1], int(match[2]) - clock()
        else:
            now = store_time(objects) if now is None else now
            found[where] = match[1], _seconds_left(objects.modified(where), now, int(match[2]), seconds)
    return found


def _seconds_left(written: float | None, now: float, expiry: int, seconds: float) -> float:
    """Return how long a lease lasts from now: by the age of its file, by the expiry in its name where the age is not known."""
    if written is None:
        return expiry - now
    age_s = now - written
    return 0.0 if age_s < -_NONSENSE_S else seconds - age_s


def _holder(objects: Objects, where: str) -> tuple[bool, float]:
    """Return whether the process that holds a lease has ended, False where that cannot be known, and how long the lease lasts."""
    try:
        content = json.loads(objects.read(where, _MAX_BYTES))
        seconds = content.get("seconds", LEASE_SECONDS)
        usual = type(seconds) is not int or not 0 < seconds <= LEASE_SECONDS
        return has_ended(content.get("process")), LEASE_SECONDS if usual else seconds
    except FileNotFoundError:  # given back a moment ago
        return True, 0.0
    except (ValueError, AttributeError, RecursionError, CacheDamaged, StoreUnavailable):
        return False, LEASE_SECONDS


def drop_expired(objects: Objects, key: str, clock: Clock | None = None) -> None:
    """Remove the leases on a set that have ended: expired ones, and those of killed runs."""
    for where, (_, left_s) in _leases(objects, key, clock).items():
        if left_s <= 0:
            objects.remove(where)
    objects.sweep(f"leases/{key}")


def refuse_leased(objects: Objects, key: str, clock: Clock | None = None) -> None:
    """Raise `BadInput` naming the holders while a set has active leases."""
    active = [(owner, left_s) for owner, left_s in _leases(objects, key, clock).values() if left_s > 0]
    if active:
        minutes = math.ceil(max(left_s for _, left_s in active) / 60)
        owners = ", ".join(sorted({owner for owner, _ in active}))
        raise BadInput(
            f"{key} is being read by {owners}; stop those runs, or wait until their leases have run "
            f"out (in {minutes} min at the latest, unless they are renewed)"
        )
