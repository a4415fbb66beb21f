"""SIGTERM at any moment of an extraction: it ends soon, keeps what was committed, and is finished by the same command (FAULTS 7)."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..conftest import tokens

pytestmark = pytest.mark.fault
MAX_SECONDS = 10.0


@contextmanager
def terminated_after(seconds: float) -> Iterator[list[float]]:
    """SIGTERM to this process so many seconds into the block, handled as the command line does; gives when it was sent."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    timer, before = threading.Timer(seconds, send), signal.signal(signal.SIGTERM, signal.default_int_handler)
    timer.start()
    try:
        yield sent
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGTERM, before)


def stopped(store: FeatureStore, options: Any, seconds: float) -> bool:
    """Extract until the signal; whether it came before the end."""
    try:
        with terminated_after(seconds) as sent:
            extract_features(replace(options, store=store.url))
    except (Interrupted, KeyboardInterrupt):
        assert time.monotonic() - sent[0] < MAX_SECONDS
        return True
    return False


def unextracted(store: FeatureStore, url: str) -> FeatureStore:
    """A store with the same dataset and nothing else."""
    copy, prefix = FeatureStore.create(url), f"datasets/{store.list_datasets()[0]}"
    for name in ("index.parquet", "identity.json"):
        copy.objects.create(f"{prefix}/{name}", [store.objects.read(f"{prefix}/{name}")])
    return copy


# A signal may come between an `open` and its `with`: the file is closed when it is collected, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_an_extraction_ended_by_sigterm_at_any_moment_is_finished_by_the_same_command(photos: Any, times: int) -> None:
    store, options, root = photos
    options = replace(options, images_per_shard=2)
    start = time.monotonic()
    expected = extract_features(options)
    whole, wanted = time.monotonic() - start, tokens(store, expected["features"]["teacher"])
    with Trials(7) as trials:
        for trial in range(times):
            again = unextracted(store, str(root / f"again{trial}"))
            cut_short = stopped(again, options, whole * (trial + 0.5) / times)
            begun = [key for key in again.list_features() if again.objects.size(f"features/{key}/identity.json") is not None]
            kept = sum(len(again.features(key).group.committed()) for key in begun)
            summary = extract_features(replace(options, store=again.url))
            assert summary["views_done"] == 48 - 4 * kept
            for ours, theirs in zip(tokens(again, summary["features"]["teacher"]), wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            trials.note("recovered" if cut_short else "right")
        assert trials.counts["recovered"] >= times // 2
