"""The signals by which the world ends a run: SIGTERM (a scheduler), SIGINT (Ctrl-C) and SIGHUP (a closed terminal or connection).

All three keep the run's state. SIGHUP and SIGINT that were ignored when the process started stay ignored: that is what `nohup` and a
shell's `&` ask for.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run of this process."""
    asked = (number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN)
    return signal.SIGTERM, *asked


def interrupt_on_stop() -> None:
    """Make every stop signal raise KeyboardInterrupt, as Ctrl-C does; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at each stop signal instead of ending the process; outside the main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        callback()

    before = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
