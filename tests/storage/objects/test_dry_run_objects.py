"""A rehearsal: everything can be read that was there or was made in it, and the store behind stays as it was."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.objects.dry_run_objects import Rehearsal
from eupe_pipeline.storage.objects.objects import open_objects


def test_what_is_made_is_read_back_and_never_reaches_the_store(tmp_path: Path) -> None:
    behind = open_objects(str(tmp_path / "store"), make=True)
    behind.create("views/a@1/identity.json", [b"old"])
    rehearsal = Rehearsal(behind)
    assert rehearsal.create("views/b@2/identity.json", [b"n", b"ew"])
    assert not rehearsal.create("views/b@2/identity.json", [b"other"])
    assert not rehearsal.create("views/a@1/identity.json", [b"other"])
    assert rehearsal.read("views/b@2/identity.json") == b"new"
    assert rehearsal.read("views/a@1/identity.json") == b"old"
    assert rehearsal.size("views/b@2/identity.json") == 3
    assert rehearsal.size("views/c@3/identity.json") is None
    assert rehearsal.names("views") == ["a@1", "b@2"]
    assert behind.names("views") == ["a@1"]


def test_nothing_is_removed_through_it(tmp_path: Path) -> None:
    behind = open_objects(str(tmp_path), make=True)
    behind.create("a/x", [b"1"])
    with pytest.raises(BadInput, match="without --dry-run"):
        Rehearsal(behind).remove("a/x")
    Rehearsal(behind).drop_empty("a")
    assert Rehearsal(behind).sweep("a") == 0
    opened, byte = Rehearsal(behind).open("a/x"), bytearray(1)
    opened.read_into([memoryview(byte)], 0)
    assert byte == b"1"
    assert behind.names("a") == ["x"]
