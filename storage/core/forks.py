"""Reset what a forked child must not inherit: locks held by other threads, threads that do not exist there, connections.

A DataLoader's workers inherit readers by fork. Objects with such state register here, and their `after_fork` runs in the child before
anything else.
"""

import contextlib
import fcntl
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


class FileLock:
    """The end of an `flock` on an open file, which a forked child neither keeps nor ends.

    A child inherits the open file and with it the lock: closing it here would leave it locked as long as the child lives, and the child
    would wait for itself. So the child closes its copy at once, and the lock is given up by name, not only by closing.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Close the inherited file, in the child."""
        if (descriptor := self._descriptor) is not None:
            self._descriptor = None
            os.close(descriptor)

    def release(self) -> None:
        """Unlock and close the file; nothing in a child that was forked meanwhile."""
        if (descriptor := self._descriptor) is not None:
            self._descriptor = None
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
