"""Sources on web servers and on S3: real names, bounded retries, and an error that names the address (FAULTS 31)."""

import email.utils
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.verify_source import verify_source
from eupe_pipeline.storage.objects import remote
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.sources.sources import read_bytes
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import indexed, pack, picture
from ..faulty_s3 import Fault, FaultyServer
from ..web_site import Answer, Site, running_site

NAMES = [
    *("plain.png", "a b.png", "100% real.png", "%41.png", "a%20b.png", "a#b.png", "a?b.png", "a&b.png", "it's.png", "a+b.png"),
    *("a;b=c,d.png", "cl ass %23/é ü.png", "cl ass %23/日本.png", 'quote"d/1.png', "no ending", "tilde~1.png"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A folder of images, a tar and a Parquet file, served."""
    folder = tmp_path / "site"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/1.png").write_bytes(picture(1))
    (folder / "a.tar").write_bytes(pack({"2.png": picture(2), "2.cls": b"dog", "3.png": picture(3)}))
    pq.write_table(pa.table({"jpg": [picture(4), picture(5)], "label": ["cat", "dog"]}), folder / "b.parquet", row_group_size=1)
    with running_site(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MIN_WAIT_S", 0.002)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


def contents(dataset: ImageDataset) -> list[bytes]:
    return [dataset.read_image_bytes(image) for image in range(len(dataset))]


@pytest.mark.fault
@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_source_on_a_web_server_is_what_it_is_here(store: FeatureStore, site: Site, has_ranges: bool, has_lengths: bool) -> None:
    site.has_ranges, site.has_lengths = has_ranges, has_lengths
    for number, name in enumerate(NAMES):
        path = site.folder / "names" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(100 + number))
    here, labels = indexed(store, site.folder)
    wanted = contents(here)
    elsewhere = FeatureStore.create(f"{store.url}-web")
    with Trials(31) as trials:
        there, same = indexed(elsewhere, site.url)
        assert same == labels
        assert there.digest == here.digest
        assert there.left_out == here.left_out == {}
        assert contents(there) == wanted
        verify_source(there)
        trials.note("right", len(NAMES))
    assert same["names/cl ass %23/é ü.png"] == "names/cl ass %23"


PASSING = {
    "429": Answer(429, {"Retry-After": "0"}),
    "503": Answer(503),
    "500": Answer(500),
    "a reset": Answer(reset=True),
    "a cut body": Answer(keep=10),
    "nothing of the body": Answer(keep=0),
}


@pytest.mark.fault
@pytest.mark.parametrize("file", ["1.png", "a.tar", "b.parquet", "/"])
def test_what_may_pass_is_tried_again_by_index_and_by_readers(store: FeatureStore, site: Site, file: str) -> None:
    wanted, labels = indexed(store, site.folder)
    elsewhere = FeatureStore.create(f"{store.url}-web")
    with Trials(31) as trials:
        for answer in PASSING.values():
            if file == "/" and answer.keep is not None:
                continue  # a listing comes from the standard library's own code
            site.faults = {file: [answer] * 3}
            dataset, same = indexed(elsewhere, site.url)
            assert (dataset.digest, same) == (wanted.digest, labels)
            assert site.faults[file] == []
            site.faults = {} if file == "/" else {file: [answer] * 2}
            assert contents(dataset) == contents(wanted)
            trials.note("recovered")


@pytest.mark.fault
@pytest.mark.parametrize("file", ["1.png", "a.tar", "b.parquet", "/"])
def test_giving_up_names_the_address_and_the_tries(store: FeatureStore, site: Site, file: str) -> None:
    dataset, _ = indexed(store, site.url)
    with Trials(31) as trials:
        for answer in (Answer(503), Answer(429), Answer(reset=True)):
            site.always = {file: answer}
            site.seen.clear()
            with pytest.raises(StoreUnavailable, match=rf"{site.url}.*failed {remote.TRIES} times"):
                indexed(store, f"{site.url}/")
            assert [path.endswith(file) for path in site.seen].count(True) <= 2 * remote.TRIES
            if file != "/":
                image = next(n for n in range(len(dataset)) if file in dataset.row(n).id)
                with pytest.raises(StoreUnavailable, match=rf"{site.url}/.*{file} failed {remote.TRIES} times"):
                    read_bytes(site.url, dataset.row(image).path, dataset.row(image).container, 0, 10)
            trials.note("detected")


@pytest.mark.fault
@pytest.mark.parametrize("status", [401, 403, 404, 410, 400])
def test_refusals_are_final(store: FeatureStore, site: Site, status: int) -> None:
    with Trials(31) as trials:
        site.always = {"1.png": Answer(status)}
        dataset, labels = indexed(store, site.url)
        assert "cat/1.png" not in labels
        assert len(dataset) == 4
        assert str(status) in dataset.skipped["cat/1.png"]
        assert [path for path in site.seen if path.endswith("1.png")] == ["/cat/1.png"]
        trials.note("detected")
        for file in ("a.tar", "b.parquet", "/cat/"):
            site.always = {file: Answer(status)}
            with pytest.raises(BadInput, match=rf"{status}.*{site.url}/{file.strip('/')}"):
                indexed(store, site.url)
            trials.note("detected")
        site.always = {"": Answer(status)}
        with pytest.raises(BadInput, match=site.url):
            indexed(store, site.url)
        trials.note("detected")


def test_patience_is_waited_for_within_a_bound(store: FeatureStore, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    site.faults = {"1.png": [Answer(429, {"Retry-After": said}) for said in ("7", "86400", date, "soon")]}
    assert len(indexed(store, site.url)[0]) == 5
    assert [round(seconds) for seconds in waited[:2]] == [7, 60]
    assert 25 < waited[2] < 31
    assert waited[3] < 1


def test_one_file_is_called_what_it_is(store: FeatureStore, site: Site) -> None:
    (site.folder / "my photo #1.png").write_bytes(picture(9))
    dataset, labels = indexed(store, f"{site.url}/my%20photo%20%231.png")
    assert list(labels) == ["my photo #1.png"]
    assert contents(dataset) == [picture(9)]


def test_images_that_were_indexed_under_encoded_names_are_read(site: Site) -> None:
    (site.folder / "a b.png").write_bytes(picture(9))
    assert read_bytes(site.url, "a%20b.png", "file", 0, 0) == picture(9)
    with pytest.raises(FileNotFoundError):
        read_bytes(site.url, "a%20c.png", "file", 0, 0)
    assert read_bytes(f"{site.url}/a%20b.png", "a%20b.png", "file", 0, 0) == picture(9)


def test_a_server_that_is_down_is_no_lost_image(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(picture(1))
    with running_site(tmp_path / "photos") as site:
        dataset, _ = indexed(store, site.url)
        site.always = {"": Answer(reset=True)}  # on connections that are still open
    with pytest.raises(StoreUnavailable, match=rf"{site.url}/1.png failed {remote.TRIES} times"):
        dataset.read_image_bytes(0)
    with pytest.raises(StoreUnavailable, match=site.url):
        indexed(store, site.url)


@pytest.fixture
def bucket(server: FaultyServer) -> tuple[str, FaultyServer]:
    """A source on S3 behind a proxy that fails."""
    url = f"s3://bucket/{uuid.uuid4().hex}"
    filesystem = RemoteObjects(url)._filesystem
    for name, data in (("cat/1.png", picture(1)), ("cat//1.png", picture(2)), ("/3.png", picture(3)), ("100% real #1?.png", picture(4))):
        filesystem.pipe_file(f"{url[5:]}/{name}", data)
    filesystem.pipe_file(f"{url[5:]}/a.tar", pack({"2.png": picture(5), "2.cls": b"dog"}))
    server.faults.clear()
    return url, server


@pytest.mark.fault
def test_keys_of_an_object_store_are_taken_as_they_are(store: FeatureStore, bucket: tuple[str, FaultyServer]) -> None:
    with Trials(31) as trials:
        dataset, labels = indexed(store, bucket[0])
        wanted = {"/3.png": None, "100% real #1?.png": None, "a.tar/2.png": "dog", "cat//1.png": "cat", "cat/1.png": "cat"}
        assert labels == wanted
        assert contents(dataset) == [picture(n) for n in (3, 4, 5, 2, 1)]
        verify_source(dataset)
        trials.note("right", 5)


@pytest.mark.fault
@pytest.mark.parametrize("fault", [Fault(503), Fault(500), Fault(429, b"TooManyRequests"), Fault(reset=True), Fault(keep=3)])
def test_a_source_on_s3_has_the_same_patience(store: FeatureStore, bucket: tuple[str, FaultyServer], fault: Fault) -> None:
    url, server = bucket
    with Trials(31) as trials:
        wanted, _ = indexed(store, url)
        server.fail("GET", fault, fault)
        assert indexed(store, url)[0].digest == wanted.digest
        server.fail("GET", fault, fault)
        assert contents(wanted) == [picture(n) for n in (3, 4, 5, 2, 1)]
        trials.note("recovered", 2)
        server.fail("GET", *[fault] * 2 * remote.TRIES)  # a reset connection is opened again once without a word
        with pytest.raises(StoreUnavailable, match=rf"s3://bucket/.*failed {remote.TRIES} times"):
            read_bytes(url, "cat/1.png", "file", 0, 0)
        trials.note("detected")
    server.faults.clear()
