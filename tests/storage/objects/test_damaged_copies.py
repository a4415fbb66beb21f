"""Local copies of a remote store that go bad on the disk: dropped, said and fetched again; what is bad in the store is said to be so."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.objects.shard_cache import CachedObjects
from eupe_pipeline.storage.store import FeatureStore

from ..faulty_s3 import FaultyServer
from ..made_up_store import Made, files


@pytest.fixture(scope="module")
def remote(server: FaultyServer, pristine: Made) -> tuple[FaultyServer, str]:
    """The complete store in a bucket."""
    url = f"s3://bucket/{uuid.uuid4().hex}"
    objects = RemoteObjects(url)
    for path in files(pristine.folder):
        objects.create(str(path.relative_to(pristine.folder)), [path.read_bytes()])
    return server, url


def opened(url: str, key: str, folder: Path) -> Made:
    store = FeatureStore.open(url, shard_cache=folder)
    features = store.features(key)
    return Made(store, features.views.dataset, features.views, features)


def copy_of(features: FeatureReader, shard: int, folder: Path) -> Path:
    """The copy of a shard's patch tokens."""
    record = features.group.record(shard)
    assert record is not None
    return folder / record.objects["patch"].xxh3_128


def flip_first(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.rename(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


DAMAGES = [flip_first, flip_last, truncate, empty, grow, replace, make_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_copies_are_fetched_again_and_said(
    remote: tuple[FaultyServer, str], pristine: Made, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    server, url = remote
    features = opened(url, pristine.features.key, tmp_path).features
    rows = np.arange(16)
    wanted = features.read(rows).patch
    assert (wanted == pristine.features.read(rows).patch).all()
    in_place = damage in (flip_first, truncate, empty)  # what is open keeps a replaced file, and its index, which is not read again
    for still_open in (True, False) if in_place else (False,):
        damaged = [copy_of(features, shard, tmp_path) for shard in (0, 1)]
        for path in damaged:
            damage(path)
        server.seen.clear()
        caplog.clear()
        features = features if still_open else opened(url, pristine.features.key, tmp_path).features
        for _ in range(2):
            assert (features.read(rows).patch == wanted).all()
        of_damaged = ("/patch/c.0.0.0.0", "/patch/c.1.0.0.0")  # others are read ahead, whenever that may be
        gets = [path for method, path in server.seen if method == "GET" and path.endswith(of_damaged)]
        said = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
        assert len(gets) == len(set(gets)) == len(said) == len(damaged)  # once each
        assert all(any(str(path) in text for text in said) for path in damaged)


def test_a_copy_that_nobody_may_read_is_fetched_again(
    remote: tuple[FaultyServer, str], pristine: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = remote
    made = opened(url, pristine.features.key, tmp_path)
    wanted = made.features.read(np.arange(40)).patch
    broken, preadv = copy_of(made.features, 1, tmp_path).stat().st_ino, os.preadv

    def failing(descriptor: int, *rest: object) -> int:
        if os.fstat(descriptor).st_ino == broken:
            raise OSError(5, os.strerror(5))
        return preadv(descriptor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: _read_unless(path, broken))
    assert (made.features.read(np.arange(40)).patch == wanted).all()
    assert isinstance(made.store.objects, CachedObjects)
    assert made.store.objects.dropped == 1


def _read_unless(path: Path, inode: int) -> bytes:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_ino == inode:
            raise OSError(5, os.strerror(5))
        return file.read()


def test_damage_of_the_store_itself_is_named_as_such(server: FaultyServer, pristine: Made, tmp_path: Path) -> None:
    url = f"s3://bucket/{uuid.uuid4().hex}"
    shutil.copytree(pristine.folder, tmp_path / "store")
    victim = f"features/{pristine.features.key}/patch/c.2.0.0.0"
    objects = RemoteObjects(url)
    for path in files(tmp_path / "store"):
        objects.create(str(path.relative_to(tmp_path / "store")), [path.read_bytes()])
    made = opened(url, pristine.features.key, tmp_path / "cache")
    wanted = made.features.read(np.arange(16, 24)).patch
    copy = copy_of(made.features, 2, tmp_path / "cache")
    data = bytearray(objects.read(victim))
    data[3] ^= 4
    objects.replace(victim, bytes(data))
    flip_first(copy)
    for _ in range(2):
        with pytest.raises(CacheDamaged, match=rf"{victim} of {url} is damaged in the store itself"):
            made.features.read(np.arange(16, 24))
    data[3] ^= 4
    objects.replace(victim, bytes(data))
    assert (made.features.read(np.arange(16, 24)).patch == wanted).all()
