"""Worker processes of a benchmark that live no longer than the process that started them, however that one ends.

A pool's workers wait for work and do not notice that nobody is left to give them any. The operating system does: the parent holds one end
of a pipe, and its death (SIGKILL included) closes it. Each worker watches the other end and ends itself at once; what it was computing is
done again by the next run, which finds its locks released.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait


def workers(count: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes that die with this one."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=die_with_parent)


def die_with_parent() -> None:
    """End this process as soon as the one that started it is gone; for processes of `multiprocessing`, returns at once."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing, so it has no parent to watch")

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True, name="parent").start()
