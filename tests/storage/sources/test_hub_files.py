"""Images in a repository of the hub at a pinned commit, over a hub on loopback."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

from ...hub_server import TOKEN, Hub, serving

NAME = "datasets/me/photos"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def png(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(hub: Hub) -> dict[str, bytes]:
    """Four photos in two folders, and what every repository has beside."""
    files = {f"train/{label}/{number} of 4.png": png(number) for number, label in enumerate(("cat", "cat", "dog", "dog"))}
    hub.make(NAME, {**files, ".gitattributes": b"", "README.md": b"# photos"})
    return files


def test_a_pinned_repository_is_a_source_with_labels_and_the_same_bytes(hub: Hub, photos: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.repositories[NAME].head
    hub.repositories[NAME].commit({"train/cat/0 of 4.png": png(9)})  # main goes on
    store = FeatureStore.create(str(tmp_path / "store"))
    dataset = build_index(store.objects, f"hf://{NAME}@{commit}/train", "photos")
    assert dataset.ids(0, 4) == sorted(path.removeprefix("train/") for path in photos)
    assert list(dataset.label_names) == ["cat", "dog"]
    opened = FeatureStore.open(store.url).dataset("photos")
    for number, image_id in enumerate(opened.ids(0, 4)):
        expected = np.asarray(Image.open(io.BytesIO(photos[f"train/{image_id}"])))
        np.testing.assert_array_equal(opened.read_image(number), expected)
    local = tmp_path / "train"
    for path, data in photos.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert build_index(store.objects, str(local), "photos").key == dataset.key
    assert build_index(store.objects, f"hub:{NAME}@{commit}/train", "photos").key == dataset.key
    assert FeatureStore.open(store.url).dataset("photos").sources == [f"hf://{NAME}@{commit}/train", str(local)]


def test_tars_and_parquet_files_are_read_by_ranges(hub: Hub, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(3):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.cls", str(number).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    table = pa.table({"image": [{"bytes": png(number), "path": None} for number in range(3, 6)], "label": [3, 4, 5]})
    rows = io.BytesIO()
    pq.write_table(table, rows)
    head = hub.make(NAME, {"data/a.tar": packed.getvalue(), "data/b.parquet": rows.getvalue()}).head
    store = FeatureStore.create(str(tmp_path / "store"))
    dataset = build_index(store.objects, f"hf://{NAME}@{head}", "photos")
    assert [dataset.label_names[label] for label in dataset.labels()] == ["0", "1", "2", "3", "4", "5"]
    hub.asked.clear()
    hub.sent = 0
    opened = FeatureStore.open(store.url).dataset("photos")
    for number in range(3):
        opened.read_image(number)
    assert hub.sent == sum(len(png(number)) for number in range(3))  # of the tar, these members alone
    assert len(hub.asked) <= 2 * 3, "a commit is looked up and listed once"
    for number in range(6):
        np.testing.assert_array_equal(opened.read_image(number), np.asarray(Image.open(io.BytesIO(png(number)))))


@pytest.mark.parametrize("address", [f"hf://{NAME}", f"hf://{NAME}@main/train", f"hf://{NAME}@abc123", "hf://datasets/photos"])
def test_an_address_without_a_full_commit_is_refused(hub: Hub, address: str, tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    with pytest.raises(BadInput, match=r"COMMIT"):
        build_index(store.objects, address, "photos")
    assert hub.asked == []


def test_what_is_not_there_is_said_at_once(hub: Hub, photos: dict[str, bytes], tmp_path: Path) -> None:
    store, commit = FeatureStore.create(str(tmp_path / "store")), hub.repositories[NAME].head
    for address in (f"hf://datasets/me/other@{commit}", f"hf://{NAME}@{'0' * 40}", f"hf://{NAME}@{commit}/test"):
        before = len(hub.asked)
        with pytest.raises((BadInput, StoreUnavailable), match=r"does not exist|refuses"):
            build_index(store.objects, address, "photos")
        assert len(hub.asked) - before < 6


def test_a_private_repository_needs_the_token_which_is_never_written(
    hub: Hub, photos: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories[NAME]
    repository.private = True
    store, address = FeatureStore.create(str(tmp_path / "store")), f"hf://{NAME}@{repository.head}"
    with pytest.raises((BadInput, StoreUnavailable), match=r"does not exist|token"):
        build_index(store.objects, address, "photos")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(build_index(store.objects, address, "photos")) == 4
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
