"""Upload a run's folder to its URL beside the training, on a background thread.

The trainer never waits for the network: a checkpoint is finished when it is on the local disk, and asks for an upload. One upload is under
way at a time; what was asked for meanwhile is done together, next. A run that ends well waits until everything is up. One that is stopped
(SIGTERM has 10 s) gives the upload `GRACE_S` more, leaves it between two files, and says what is not up: the same command on the same
machine uploads it. An upload that fails in the middle of a run is a warning, and the next checkpoint brings everything up to date; at the
end it is an error. The thread dies with its process; what it was at then has no manifest, so nobody takes it for a checkpoint.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ...storage.core.errors import Interrupted, StoreUnavailable
from ...storage.core.events import Event, OnEvent

GRACE_S = 2.0
_PUSH_AT = ("start", "checkpoint")
_SAY_AFTER_S = 1.0


class Mirror(Protocol):
    """What is uploaded: `upload.RunMirror`."""

    @property
    def url(self) -> str:
        """The URL that is uploaded to."""

    def claim(self) -> None:
        """Make the URL this run's."""

    def push(self, go_on: Callable[[], bool]) -> bool:
        """Upload what the URL lacks; return False when another push is due."""

    def missing(self) -> list[str]:
        """Return what is not uploaded."""


@contextlib.contextmanager
def uploading(mirror: Mirror, on_event: OnEvent) -> Iterator[OnEvent]:
    """Yield the callback that has the run uploaded at its start and at each checkpoint; waits for it when the block ends well.

    Raises what an upload raises but may not be survived, at the next event, and `StoreUnavailable` at the end.
    """
    uploads = Uploads(mirror)

    def report(event: Event) -> None:
        if event["event"] == "start":
            mirror.claim()  # before the first step, and before anything is told that may begin one
        on_event(event)
        if (failed := uploads.failure()) is not None:
            on_event({"event": "warning", "text": f"{failed}; the run goes on, the next checkpoint is put with this one"})
        if event["event"] in _PUSH_AT:
            uploads.ask()

    try:
        yield report
    except BaseException as error:
        uploads.stop(GRACE_S)
        if uploads.begun and (left := mirror.missing()):
            text = _not_up(left, mirror.url, uploads.why_not())
            if isinstance(error, Interrupted):
                raise Interrupted(f"{error}. {text}") from error
            on_event({"event": "warning", "text": text})
        raise
    uploads.finish(on_event)


def _not_up(left: list[str], url: str, why: str) -> str:
    return (
        f"Not yet in {url}: {', '.join(left)}{why}. The same command on this machine uploads it; on another one the run goes on from what "
        "is there"
    )


class Uploads(threading.Thread):
    """Pushes a mirror whenever it was asked to since the last push began."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(daemon=True, name="upload")
        self.mirror, self.begun = mirror, False
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._stopping = False
        self._failed: Exception | None = None

    def ask(self) -> None:
        """Request an upload of everything that is in the folder now."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()
        if not self.begun:
            self.begun = True
            self.start()

    def failure(self) -> StoreUnavailable | None:
        """Return why the last push failed, once; raises what is not about the network."""
        with self._changed:
            failed, self._failed = self._failed, None
        if failed is None or isinstance(failed, StoreUnavailable):
            return failed
        raise failed

    def why_not(self) -> str:
        """Return how the last push failed, in brackets; "" where it was only too slow."""
        with self._changed:
            return f" ({self._failed})" if self._failed is not None else ""

    def finish(self, on_event: OnEvent) -> None:
        """Wait until everything is uploaded; raises what the last push raised."""
        self.failure()
        self.ask()
        began, announced = time.monotonic(), False
        while not self._wait(0.05):
            if not announced and time.monotonic() - began > _SAY_AFTER_S:
                announced = True
                text = f"waiting for the upload to {self.mirror.url}: {', '.join(self.mirror.missing())}"
                on_event({"event": "note", "text": text})
        self.stop(None)
        if (failed := self.failure()) is not None:
            raise StoreUnavailable(f"{failed}; the run is finished on this machine, the same command uploads it") from failed

    def stop(self, grace_s: float | None) -> None:
        """End the thread, after what it was asked for or after the grace, whichever comes first."""
        if self.begun:
            self._wait(grace_s)
            with self._changed:
                self._stopping = True
                self._changed.notify_all()

    def _wait(self, seconds: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._done == self._asked, seconds)

    def run(self) -> None:
        """Push until told to stop."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done < self._asked or self._stopping)
                if self._stopping:
                    return
                asked = self._asked
            failed = self._push()
            with self._changed:
                self._done, self._failed = asked, failed
                self._changed.notify_all()

    def _push(self) -> Exception | None:
        try:
            while not self.mirror.push(lambda: not self._stopping):
                if self._stopping:
                    return None
        except Exception as error:  # noqa: BLE001 - raised in the trainer's thread, at its next event
            return error
        return None
