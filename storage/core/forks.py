"""Reset what a forked child must not inherit: locks held by other threads, threads that do not exist there, connections.

A DataLoader's workers inherit readers by fork. Objects with such state register here, and their `after_fork` runs in the child before
anything else.
"""

import os
import threading
import weakref
from typing import Protocol, TypeVar


class ForkAware(Protocol):
    """An object with a lock, a thread or a connection."""

    def after_fork(self) -> None:
        """Reset the object, in the child."""


Registered = TypeVar("Registered", bound=ForkAware)
_REGISTERED: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()


def reset_after_fork(instance: Registered) -> Registered:
    """Call `instance.after_fork()` in each child of this process, as long as the instance lives; return it."""
    _REGISTERED.add(instance)
    return instance


def _reset_all() -> None:
    for instance in list(_REGISTERED):
        instance.after_fork()


os.register_at_fork(after_in_child=_reset_all)


class ForkSafeLock:
    """A lock that is free in a forked child, whichever thread held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, in the child."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
