"""Dry run: everything can be read that was there or was created in it, and the underlying store is unchanged."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.objects.objects import open_objects


def test_what_is_made_is_read_back_and_never_reaches_the_store(tmp_path: Path) -> None:
    base = open_objects(str(tmp_path / "store"), make=True)
    base.create("views/a@1/identity.json", [b"old"])
    dry_run = DryRunObjects(base)
    assert dry_run.create("views/b@2/identity.json", [b"n", b"ew"])
    assert not dry_run.create("views/b@2/identity.json", [b"other"])
    assert not dry_run.create("views/a@1/identity.json", [b"other"])
    assert dry_run.read("views/b@2/identity.json") == b"new"
    assert dry_run.read("views/a@1/identity.json") == b"old"
    assert dry_run.size("views/b@2/identity.json") == 3
    assert dry_run.size("views/c@3/identity.json") is None
    assert dry_run.names("views") == ["a@1", "b@2"]
    assert base.names("views") == ["a@1"]


def test_nothing_is_removed_through_it(tmp_path: Path) -> None:
    base = open_objects(str(tmp_path), make=True)
    base.create("a/x", [b"1"])
    with pytest.raises(BadInput, match="without --dry-run"):
        DryRunObjects(base).remove("a/x")
    DryRunObjects(base).drop_empty("a")
    assert DryRunObjects(base).sweep("a") == 0
    opened, byte = DryRunObjects(base).open("a/x"), bytearray(1)
    opened.read_into([memoryview(byte)], 0)
    assert byte == b"1"
    assert base.names("a") == ["x"]
