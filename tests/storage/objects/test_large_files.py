"""Large files are whole whatever the disk does, and durable before they have a name."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.objects import large_files
from eupe_pipeline.storage.objects.atomic_files import create_exclusively
from eupe_pipeline.storage.objects.large_files import BLOCK_BYTES, LARGE_BYTES, Streamed, write_large

from ...fault_log import Trials


class Noise(Streamed):
    """`size` random bytes in pieces of odd lengths."""

    def __init__(self, size: int, piece: int = 655_364) -> None:
        self.size, self.piece = size, piece
        self.data = np.random.default_rng(size).bytes(size)

    def __iter__(self) -> Iterator[memoryview]:
        return (memoryview(self.data)[start : start + self.piece] for start in range(0, self.size, self.piece))


def written(path: Path, content: Noise) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_large(descriptor, content)
    finally:
        os.close(descriptor)
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 4095, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 7 * BLOCK_BYTES + 4097])
@pytest.mark.parametrize("piece", [655_364, 3 * BLOCK_BYTES])
def test_every_length_comes_back(tmp_path: Path, size: int, piece: int) -> None:
    content = Noise(size, piece)
    assert written(tmp_path / "x", content) == content.data


def replaced(monkeypatch: pytest.MonkeyPatch, write: Callable[[Callable[..., int], int, list[memoryview], int], int]) -> None:
    """Give every positioned write to `write`, with the real one."""
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda descriptor, buffers, offset: write(real, descriptor, buffers, offset))


def test_a_file_system_that_wants_another_alignment_is_written_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def refuse_direct(real: Callable[..., int], descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & large_files._DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, buffers, offset)

    content = Noise(5 * BLOCK_BYTES + 3)
    replaced(monkeypatch, refuse_direct)
    assert written(tmp_path / "x", content) == content.data
    assert refused or not large_files._DIRECT


def test_an_error_that_is_not_about_alignment_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(real: Callable[..., int], descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    replaced(monkeypatch, refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        written(tmp_path / "x", Noise(5 * BLOCK_BYTES))


def test_short_writes_of_blocks_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Noise(2 * BLOCK_BYTES + 17)
    replaced(monkeypatch, lambda real, descriptor, buffers, offset: real(descriptor, [buffers[0][: 4096 * 100]], offset))
    assert written(tmp_path / "x", content) == content.data


def test_a_disk_that_fills_at_any_block_leaves_nothing_and_names_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Noise(LARGE_BYTES + 5)
    with Trials(8) as trials:
        for blocks in range(0, 9, 4):
            left = iter(range(blocks))

            def fill(real: Callable[..., int], descriptor: int, buffers: list[memoryview], offset: int, left: Iterator[int] = left) -> int:
                if next(left, None) is None:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(descriptor, buffers, offset)

            with monkeypatch.context() as patch:
                replaced(patch, fill)
                with pytest.raises(StoreUnavailable, match=f"{content.size:,} bytes were needed"):
                    create_exclusively(tmp_path / "x", content)
            assert os.listdir(tmp_path) == []
            assert create_exclusively(tmp_path / "x", content)
            assert (tmp_path / "x").read_bytes() == content.data
            (tmp_path / "x").unlink()
            trials.note("recovered")


def test_a_large_file_is_whole_before_its_fsync_and_durable_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watch(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any) -> Any:
            result = real(*args)
            calls.append(name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("pwritev", "writev", "fsync", "link"):
        watch(name)
    content = Noise(LARGE_BYTES + 5)
    with Trials(9) as trials:
        assert create_exclusively(tmp_path / "x", content)
        assert calls == ["pwritev"] * (LARGE_BYTES // BLOCK_BYTES + 1) + ["fsync", "link", "fsync"]
        trials.note("right")


def test_content_that_fails_while_it_is_made_is_never_published(tmp_path: Path) -> None:
    class Broken(Noise):
        def __iter__(self) -> Iterator[memoryview]:
            yield from list(super().__iter__())[:4]
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        create_exclusively(tmp_path / "x", Broken(LARGE_BYTES))
    assert os.listdir(tmp_path) == []


def test_three_blocks_of_memory_are_enough_for_any_size() -> None:
    blocks = [block.obj for block in large_files._blocks(Noise(9 * BLOCK_BYTES + 1))]
    assert len(blocks) == 10
    assert len({id(memory) for memory in blocks}) == 3
