"""Leases that jobs hold on feature sets: a training run on what it reads, an extraction on what it writes, so that `prune` waits for both.

A thread renews them while the job runs. A store that refuses to be written to (another team's bucket) is read without a lease, with a
warning: whoever may delete there cannot know of us. An extraction's lease also tells a run that follows it whether somebody is still at
work.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence

from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.core.events import OnEvent
from ...storage.store import FeatureStore
from ...storage.upkeep.leases import LEASE_SECONDS, Lease, drop_expired, holders

EXTRACTION = "extract"
_RENEW_S = LEASE_SECONDS / 6


@contextlib.contextmanager
def leases(store: FeatureStore, keys: Iterable[str], what: str, on_event: OnEvent, renew_s: float = _RENEW_S) -> Iterator[None]:
    """Hold a lease on each feature set, or subset; raises `BadInput` for one that was deleted before its lease stood."""
    active: list[Lease] = []
    try:
        active += _take_leases(store, list(dict.fromkeys(keys)), what, on_event)
        with _renewing(active, renew_s, on_event):
            yield
    finally:
        for lease in active:
            with contextlib.suppress(StoreUnavailable):  # it runs out by itself
                lease.release()


def _take_leases(store: FeatureStore, keys: Sequence[str], what: str, on_event: OnEvent) -> list[Lease]:
    owner, active, unleased, why = f"{what}-{socket.gethostname()[:30]}-{os.getpid()}", list[Lease](), list[str](), ""
    for key in keys:
        try:
            active.append(Lease(store.objects, key, owner))
            drop_expired(store.objects, key)  # of killed runs: a set that nobody prunes would collect them
        except StoreUnavailable as error:
            unleased, why = [*unleased, key], str(error)
        if all(store.objects.size(f"{kind}/{key}/identity.json") is None for kind in ("features", "subsets")):
            for lease in active:
                with contextlib.suppress(StoreUnavailable):
                    lease.release()
            raise BadInput(f"{key} was deleted from {store.url} a moment ago; extract it again")
    if unleased:
        text = f"no lease on {', '.join(unleased)}, so `features prune` will not know that it is being read: {why}"
        on_event({"event": "warning", "text": text})
    return active


@contextlib.contextmanager
def _renewing(active: Sequence[Lease], every_s: float, on_event: OnEvent) -> Iterator[None]:
    over = threading.Event()

    def renew() -> None:
        while not over.wait(every_s):
            for lease in active:
                try:
                    lease.renew()
                except StoreUnavailable as error:
                    on_event({"event": "warning", "text": f"a lease could not be renewed, the next try is in {every_s:.0f} s: {error}"})

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def extractors(store: FeatureStore, keys: Iterable[str]) -> list[str]:
    """Return the owners of the leases that extractions hold on any of these feature sets."""
    return sorted({owner for key in keys for owner in holders(store.objects, key) if owner.startswith(f"{EXTRACTION}-")})
