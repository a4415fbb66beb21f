"""Leases: a run that reads a set says so, and `prune` leaves the set alone until the lease is given back or has run out.

    leases/<features key>/<owner>-<expiry in seconds since 1970>.json

A renewal is a new file with a later expiry; the old one is removed after it. Clocks of machines may differ by minutes, so lease for an hour
and renew every ten minutes. Nothing else in the store depends on a clock.
"""

import math
import re
import secrets
import time
from collections.abc import Callable

from .errors import BadInput
from .objects import Objects

LEASE_SECONDS = 3600
_NAME = re.compile(r"([A-Za-z0-9_.-]+)-(\d{1,15})\.json")


class Lease:
    """A running reader's claim on one set; a context manager that gives it back."""

    def __init__(
        self, objects: Objects, key: str, owner: str, seconds: int = LEASE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects, self._prefix, self._seconds, self._clock = objects, f"leases/{key}", seconds, clock
        self._owner = re.sub(r"[^A-Za-z0-9_.-]", "_", owner)[:60] + f"-{secrets.token_hex(4)}"
        self._held = ""
        self.renew()

    def renew(self) -> None:
        """Claim the set for `seconds` from now on."""
        name = f"{self._prefix}/{self._owner}-{int(self._clock()) + self._seconds}.json"
        self._objects.create(name, [b"{}"])
        if self._held and self._held != name:
            self._objects.remove(self._held)
        self._held = name

    def release(self) -> None:
        """Give it back."""
        if self._held:
            self._objects.remove(self._held)
        self._held = ""

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _expiries(objects: Objects, key: str) -> list[int]:
    found = (_NAME.fullmatch(name) for name in objects.names(f"leases/{key}"))
    return [int(match[2]) for match in found if match is not None]


def holders(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> list[str]:
    """Who holds a lease on a set that has not run out."""
    found = (_NAME.fullmatch(name) for name in objects.names(f"leases/{key}"))
    return sorted({match[1] for match in found if match is not None and int(match[2]) > clock()})


def drop_expired(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> None:
    """Remove the leases on a set that have run out: those of runs that were killed."""
    for name in objects.names(f"leases/{key}"):
        match = _NAME.fullmatch(name)
        if match is not None and int(match[2]) <= clock():
            objects.remove(f"leases/{key}/{name}")


def refuse_leased(objects: Objects, key: str, clock: Callable[[], float] = time.time) -> None:
    """Raise `BadInput` that names the holders when somebody reads the set."""
    named = holders(objects, key, clock)
    if named:
        minutes = math.ceil((max(_expiries(objects, key)) - clock()) / 60)
        raise BadInput(
            f"{key} is being read by {', '.join(named)}; stop those runs, or wait until their leases have run out (in {minutes} min at the "
            "latest, unless they are renewed)"
        )
