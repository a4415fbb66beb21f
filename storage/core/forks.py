"""What a child that was made by fork must not take over: locks that another thread held, threads that are not there, connections.

A DataLoader's workers inherit readers in this way. Whoever has such things registers, and is told in the child before anything else runs.
"""

import os
import threading
import weakref
from typing import Protocol, TypeVar


class Renewable(Protocol):
    """Something with a lock, a thread or a connection."""

    def after_fork(self) -> None:
        """Begin anew, in the child."""


Kept = TypeVar("Kept", bound=Renewable)
_KEPT: "weakref.WeakSet[Renewable]" = weakref.WeakSet()


def renewed_after_fork(one: Kept) -> Kept:
    """Tell `one` in each child of this process, as long as it lives; returns it."""
    _KEPT.add(one)
    return one


def _renew() -> None:
    for one in list(_KEPT):
        one.after_fork()


os.register_at_fork(after_in_child=_renew)


class ForkSafeLock:
    """A lock that is free in a child made by fork, whichever thread held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
