"""A disk or a network file system that fails while a store is read: an error of ours that names the file, and a check that goes on."""

import errno
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.reports.catalog import list_store, verify_features
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.upkeep.maintenance import verify

from ..made_up_store import Made, reopen

NUMBERS = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO]


def break_file(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Every read of a file whose path ends like this fails, however it was opened."""
    preadv = os.preadv

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def read(descriptor: int, *rest: Any) -> int:
        if path_of(descriptor).endswith(name):
            raise OSError(number, os.strerror(number))
        return preadv(descriptor, *rest)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr("pathlib.Path.read_bytes", _failing_read_bytes(name, number))


def _failing_read_bytes(name: str, number: int) -> Callable[[Any], bytes]:
    def read_bytes(self: Any) -> bytes:
        if str(self).endswith(name):
            raise OSError(number, os.strerror(number))
        with open(self, "rb") as file:
            return file.read()

    return read_bytes


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: errno.errorcode[number])
def test_a_read_that_fails_names_the_file(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made = copied()
    rows = np.arange(8, 16)
    made.features.read(rows)
    with monkeypatch.context() as broken:
        break_file(broken, "/patch/c.1.0.0.0", number)
        with pytest.raises(StoreUnavailable, match=r"cannot read .*/patch/c\.1\.0\.0\.0"):
            made.features.read(rows)
        made.features.read(np.arange(8))
    made.features.read(rows)  # a network that is back is enough


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: errno.errorcode[number])
def test_verification_counts_it_and_goes_on(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made = copied()
    (made.folder / f"features/{made.features.key}/cls/c.3.0").write_bytes(b"other")
    break_file(monkeypatch, "/patch/c.1.0.0.0", number)
    found = verify(reopen(made).features)
    assert [one.shard for one in found] == [1, 3]
    assert "cannot read" in found[0].reason
    whole = verify_features(store=made.store.url, key=made.features.key, on_event=lambda event: None)
    assert sorted(whole["damaged"]) == ["1", "3"]
    assert whole["verified"] == 3


def test_a_set_that_cannot_be_read_does_not_hide_the_others(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    made = copied()
    break_file(monkeypatch, f"features/{made.features.key}/identity.json", errno.EIO)
    found = list_store(store=made.store.url, on_event=lambda event: None)
    assert list(found["views"]) == [made.views.key]
    assert "cannot read" in found["unreadable"][f"features/{made.features.key}"]


def test_the_size_of_a_file_that_cannot_be_asked_for_is_an_error_of_ours(
    copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = copied().store.objects

    def stat(self: Any, **_: Any) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("pathlib.Path.stat", stat)
    with pytest.raises(StoreUnavailable, match=r"cannot read .*eupe-store\.json"):
        objects.size("eupe-store.json")
