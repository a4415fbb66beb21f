"""Files of their own, tars and Parquet tables keep the contract of a source: on this disk, on a web server, on an object store."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.choices import CONTAINERS
from eupe_pipeline.storage.sources.source_contract import ImageSourceContract
from eupe_pipeline.storage.sources.sources import read_bytes

from ..damaged_tars import pack, picture
from ..web_site import running_site

PHOTOS = {"a": picture(1), "b": picture(2, "JPEG"), "c": picture(3)}


def as_files(folder: Path) -> tuple[dict[str, bytes], dict[str, str | None]]:
    for number, (name, data) in enumerate(PHOTOS.items()):
        (folder / ("cat", "dog")[number % 2]).mkdir(exist_ok=True)
        (folder / ("cat", "dog")[number % 2] / name).write_bytes(data)
    return {"cat/a": PHOTOS["a"], "dog/b": PHOTOS["b"], "cat/c": PHOTOS["c"]}, {"cat/a": "cat", "dog/b": "dog", "cat/c": "cat"}


def as_tars(folder: Path) -> tuple[dict[str, bytes], dict[str, str | None]]:
    (folder / "1.tar").write_bytes(pack({"a.png": PHOTOS["a"], "a.cls": b"cat", "b.jpg": PHOTOS["b"]}))
    (folder / "2.tar").write_bytes(pack({"c.png": PHOTOS["c"], "c.cls": b"dog"}))
    images = {"1.tar/a.png": PHOTOS["a"], "1.tar/b.jpg": PHOTOS["b"], "2.tar/c.png": PHOTOS["c"]}
    return images, {"1.tar/a.png": "cat", "1.tar/b.jpg": None, "2.tar/c.png": "dog"}


def as_tables(folder: Path) -> tuple[dict[str, bytes], dict[str, str | None]]:
    pq.write_table(pa.table({"image": [PHOTOS["a"], PHOTOS["b"]], "label": ["cat", "dog"]}), folder / "1.parquet", row_group_size=1)
    pq.write_table(pa.table({"image": [PHOTOS["c"]]}), folder / "2.parquet")
    images = {"1.parquet/0": PHOTOS["a"], "1.parquet/1": PHOTOS["b"], "2.parquet/0": PHOTOS["c"]}
    return images, {"1.parquet/0": "cat", "1.parquet/1": "dog", "2.parquet/0": None}


WRITERS: dict[str, Callable[[Path], tuple[dict[str, bytes], dict[str, str | None]]]] = {
    "file": as_files,
    "tar": as_tars,
    "parquet": as_tables,
}


def here(folder: Path) -> Iterator[str]:
    yield str(folder)


def on_a_web_server(folder: Path) -> Iterator[str]:
    with running_site(folder.parent) as site:
        yield f"{site.url}/{folder.name}"


def on_an_object_store(folder: Path) -> Iterator[str]:
    key = uuid.uuid4().hex
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe_file(f"/{key}/{path.relative_to(folder)}", path.read_bytes())
    yield f"memory://{key}"


class TestEverySource(ImageSourceContract):
    @pytest.fixture(autouse=True, params=[here, on_a_web_server, on_an_object_store], ids=lambda place: str(place.__name__))
    def each_place(self, request: pytest.FixtureRequest, container: str, tmp_path: Path) -> Iterator[None]:
        (tmp_path / "photos").mkdir()
        self.images, self.labels = WRITERS[container](tmp_path / "photos")
        places = request.param(tmp_path / "photos")
        self.url = next(places)
        yield
        places.close()

    @pytest.fixture(params=WRITERS)
    def container(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


def test_each_container_runs_the_contract() -> None:
    assert tuple(WRITERS) == CONTAINERS


def test_a_container_of_a_later_version_is_named_instead_of_read_as_a_range(tmp_path: Path) -> None:
    (tmp_path / "a.lance").write_bytes(b"0123456789")
    with pytest.raises(OSError, match="is a lance, a kind of file that this version does not read"):
        read_bytes(str(tmp_path), "a.lance", "lance", 2, 4)
