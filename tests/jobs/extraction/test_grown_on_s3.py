"""A grown dataset in an object store: shards are copied within it, without replacing anything."""

from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.objects import remote
from eupe_pipeline.storage.objects.remote import RemoteObjects, copy_exclusively

from ...storage.faulty_s3 import FaultyServer
from ..growing import Growing


@pytest.mark.parametrize("least_bytes", [1, pytest.param(8 << 20, marks=pytest.mark.long)])  # a copy within S3, a put
def test_shards_are_copied_within_the_store(
    bucket: FaultyServer,
    tmp_path: Path,
    all_photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    least_bytes: int,
) -> None:
    monkeypatch.setattr(remote, "_LEAST_COPIED_BYTES", least_bytes)
    copied: list[str] = []

    def counted(filesystem: object, existing: str, path: str) -> None:
        copied.append(path)
        copy_exclusively(filesystem, existing, path)

    monkeypatch.setattr(remote, "copy_exclusively", counted)
    growing = Growing(tmp_path, all_photos, f"s3://runs/grown-{least_bytes}")
    old = growing.reader(growing.extract(images_per_shard=32))
    growing.grow()
    summary = growing.extract(images_per_shard=32)
    new = growing.reader(summary)
    assert (summary["views_done"], summary["shards_taken_over"]) == (8, 1)
    rows = np.arange(80)
    assert np.array_equal(old.read(rows).patch, new.read(rows).patch)
    objects_of_a_shard = len(new.group.specs) + len(new.views.group.specs)
    assert len(copied) == (objects_of_a_shard if least_bytes == 1 else 0)
    assert growing.extract(images_per_shard=32)["views_done"] == 0


def test_a_copy_within_s3_replaces_nothing_and_leaves_nothing_unfinished(bucket: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LEAST_COPIED_BYTES", 1)
    objects = RemoteObjects("s3://runs/copies")
    objects.create("a", [b"first"])
    assert objects.duplicate("a", "folder/b", b"first")
    assert objects.read("folder/b") == b"first"
    objects.create("c", [b"second"])
    assert not objects.duplicate("a", "c", b"first")
    assert objects.read("c") == b"second"
    with pytest.raises(FileNotFoundError):
        objects.duplicate("absent", "d", b"first")
    assert objects.size("d") is None
    unfinished = objects._filesystem.call_s3("list_multipart_uploads", Bucket="runs")
    assert unfinished.get("Uploads", []) == []
