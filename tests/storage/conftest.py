"""Stores for the storage tests: a complete one that nobody changes, and fresh copies to damage."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from eupe_pipeline.storage.objects.remote import RemoteObjects

from .faulty_s3 import SECRETS, FaultyServer, running
from .made_up_store import Made, build, reopen


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A complete int8 store: 20 images, 40 rows, 5 shards. Read only."""
    return build(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def copied(pristine: Made, tmp_path: Path) -> Callable[[], Made]:
    """Make a fresh copy of the complete store, to be damaged; its images stay where they are."""
    count = iter(range(1000))

    def copy() -> Made:
        target = tmp_path / f"copy{next(count)}"
        shutil.copytree(pristine.folder, target)
        return reopen(pristine._replace(store=type(pristine.store).open(str(target))))

    return copy


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: killing a process takes nothing from the page cache, a disk only costs fsyncs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="eupe-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyServer]:
    """One S3 server for all: the client library keeps its first connection per process."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def server(s3_server: FaultyServer) -> Iterator[FaultyServer]:
    """The server, with the environment that leads to it and a bucket."""
    with mock.patch.dict(os.environ, {**SECRETS, "AWS_ENDPOINT_URL": s3_server.url, "AWS_DEFAULT_REGION": "us-east-1"}):
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of what was connected under another environment
        filesystem = RemoteObjects("s3://bucket")._filesystem
        if not filesystem.exists("bucket"):
            filesystem.mkdir("bucket")
        yield s3_server
