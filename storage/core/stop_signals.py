"""Handle the signals that stop a run: SIGTERM (from a scheduler), SIGINT (Ctrl-C) and SIGHUP (a closed terminal or connection).

A run that is stopped by any of them saves its state. SIGHUP and SIGINT that are ignored when the process starts stay ignored, as `nohup`
and a shell's `&` require.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a run of this process."""
    not_ignored = (number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN)
    return signal.SIGTERM, *not_ignored


def interrupt_on_stop() -> None:
    """Make every stop signal raise KeyboardInterrupt, as Ctrl-C does; do nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def call_on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at each stop signal inside the block instead of ending the process; do nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        callback()

    previous_handlers = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
