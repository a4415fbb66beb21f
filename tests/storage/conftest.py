"""Stores for the storage tests: a complete one that nobody changes, and fresh copies to damage."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
    """A folder in memory where the system has one: killing a process takes nothing from the page cache, so a disk would only cost fsyncs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="eupe-tests-") as folder:
        yield Path(folder)
