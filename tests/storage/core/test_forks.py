"""Readers that a child inherits by fork, as a DataLoader's workers do: they read the same, and the parent goes on."""

import fcntl
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.forks import FileLock
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.objects.shard_cache import CachedObjects
from eupe_pipeline.storage.store import FeatureStore

from ..faulty_s3 import FaultyServer
from ..made_up_store import Made, files


def in_child(work: Callable[[], bool], limit_s: float = 120) -> bool:
    """Whether a forked child did the work well, in time."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.fixture(scope="module")
def url(server: FaultyServer, pristine: Made) -> str:
    url = f"s3://bucket/{uuid.uuid4().hex}"
    objects = RemoteObjects(url)
    for path in files(pristine.folder):
        objects.create(str(path.relative_to(pristine.folder)), [path.read_bytes()])
    return url


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("cached", [False, True], ids=["by ranges", "by copies"])
def test_an_inherited_reader_of_s3_connects_anew(url: str, pristine: Made, tmp_path: Path, cached: bool) -> None:
    features = FeatureStore.open(url, shard_cache=tmp_path if cached else None).features(pristine.features.key)
    rows = np.arange(features.rows)
    features.prefetch(rows)
    features.read(rows[:8])
    wanted = pristine.features.read(rows).patch

    def read() -> bool:
        grandchild = in_child(lambda: bool((features.read(rows[3:9]).patch == wanted[3:9]).all()))
        return grandchild and bool((features.read(rows).patch == wanted).all())

    assert in_child(read)
    assert all([in_child(read), in_child(read)])
    assert (features.read(rows).patch == wanted).all()  # the parent's connections are whole


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_read_what_they_inherited(url: str, pristine: Made) -> None:
    from torch.utils.data import DataLoader, Dataset

    features = FeatureStore.open(url).features(pristine.features.key)
    wanted = pristine.features.read(np.arange(16)).patch
    assert (features.read(np.arange(16)).patch == wanted).all()

    class Rows(Dataset[bytes]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, row: int) -> bytes:
            return features.read([row]).patch.tobytes()

    loader = DataLoader(Rows(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
    assert list(loader) == [row.tobytes() for row in wanted]
    assert (features.read(np.arange(16)).patch == wanted).all()


def test_a_lock_that_another_thread_holds_does_not_stop_the_child(copied: Callable[[], Made]) -> None:
    features = copied().features
    wanted = features.read([0, 9]).patch
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with features.group._lock, features.group._open._lock, features.views._kept._lock, features.views.dataset._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_child(lambda: bool((features.read([0, 9]).patch == wanted).all()), limit_s=60)
    finally:
        over.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_copy_that_another_thread_downloads_at_the_fork_is_had_by_the_child(tmp_path: Path) -> None:
    """The child inherits the open lock file: it must not wait for a lock that it holds itself."""
    objects, begun = CachedObjects(RemoteObjects("s3://bucket/x"), tmp_path), threading.Event()

    def download() -> None:
        with objects._locked("ab1"):
            begun.set()
            time.sleep(0.3)

    def read() -> bool:
        with objects._locked("ab2"):
            return True

    thread = threading.Thread(target=download)
    thread.start()
    begun.wait()
    assert in_child(read, limit_s=60)
    thread.join()


def test_a_child_that_lives_on_does_not_keep_a_file_locked_and_does_not_unlock_it(tmp_path: Path) -> None:
    def lock() -> tuple[int, FileLock]:
        descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        return descriptor, FileLock(descriptor)

    def is_free() -> bool:
        other, held = lock()
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            held.release()
        return True

    def end() -> bool:
        held.release()
        return True

    descriptor, held = lock()
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert in_child(end)
    assert not is_free()
    child = os.fork()
    if not child:
        try:
            time.sleep(60)
        finally:
            os._exit(0)
    held.release()
    free = is_free()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert free
