"""Tars and folders on an object store are walked as those on this disk are (FAULTS 28, 29)."""

import uuid
from pathlib import Path

import fsspec
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.verify_source import verify_source
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import indexed, pack, picture

MEMBERS = {f"{n}.png": picture(n) for n in range(3)} | {f"{n}.cls": b"%d" % n for n in range(3)} | {"._1.png": b"x", "9.cls": b"9"}


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    request.getfixturevalue("server")
    return f"s3://bucket/{uuid.uuid4().hex}"


def put(url: str, name: str, data: bytes) -> None:
    filesystem = RemoteObjects(url)._filesystem if url.startswith("s3") else fsspec.filesystem("memory")
    filesystem.pipe_file(f"{url.split('://')[1]}/{name}", data)


@pytest.mark.fault
def test_a_tar_and_files_of_any_ending_are_found_on_an_object_store(tmp_path: Path, place: str) -> None:
    (tmp_path / "here/cat").mkdir(parents=True)
    for name, data in (("a.tar", pack(MEMBERS)), ("cat/photo", picture(5)), ("cat/x.jfif", picture(6, "JPEG")), ("notes.txt", b"hello")):
        (tmp_path / "here" / name).write_bytes(data)
        put(place, name, data)
    with Trials(29) as trials:
        here, labels = indexed(FeatureStore.create(str(tmp_path / "one")), tmp_path / "here")
        there, same = indexed(FeatureStore.create(str(tmp_path / "two")), f"{place}/")
        assert there.digest == here.digest
        assert same == labels
        assert labels["a.tar/2.png"] == "2"
        assert labels["cat/photo"] == labels["cat/x.jfif"] == "cat"
        assert there.left_out == here.left_out
        assert here.left_out == {"hidden files and folders": 1, "labels that belong to no image": 1, "files ending .txt": 1}
        verify_source(there)
        trials.note("right")


@pytest.mark.fault
def test_a_damaged_tar_on_an_object_store_is_refused(tmp_path: Path, place: str) -> None:
    good = pack(MEMBERS)
    with Trials(28) as trials:
        for n, data in enumerate((good[:1536], good[:1600], good + good, good[:1024] + bytes(512) + good[1536:])):
            put(f"{place}/{n}", "a.tar", data)
            with pytest.raises(BadInput, match=r"a\.tar is not a readable tar.* at byte"):
                indexed(FeatureStore.create(str(tmp_path / "store")), f"{place}/{n}")
            trials.note("detected")


def test_objects_that_mark_folders_are_no_files(tmp_path: Path, place: str) -> None:
    put(place, "cat/1.png", picture(1))
    if place.startswith("s3"):
        put(place, "cat/", b"")
    dataset, labels = indexed(FeatureStore.create(str(tmp_path / "store")), place)
    assert labels == {"cat/1.png": "cat"}
    assert dataset.left_out == {}
