"""Kept forwards: exact, found under what the forward was given and nothing else, and never in the way."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.cache_home import HOME_VARIABLE
from eupe_pipeline.storage.features.kept_forwards import KeptForwards, RawTokens, discard, forward_key, new_run, sweep_forwards

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return tmp_path / "forwards"


def raw(with_cls: bool = True) -> RawTokens:
    patch = RANDOM.normal(size=(3, 2, 2, 5)).astype(np.float32)
    patch[0, 0, 0, :3] = np.nan, np.inf, -0.0
    return RawTokens(RANDOM.normal(size=(3, 4)).astype(np.float32) if with_cls else None, patch)


@pytest.mark.parametrize("with_cls", [True, False])
def test_tokens_come_back_to_the_bit_once(with_cls: bool) -> None:
    tokens, kept = raw(with_cls), KeptForwards("run")
    kept.keep("a" * 32, tokens)
    found = KeptForwards("run").take("a" * 32)  # another process of the run
    assert found is not None
    assert (found.cls is None) == (not with_cls)
    for ours, theirs in zip(found, tokens, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert (ours.shape, ours.tobytes()) == (theirs.shape, theirs.tobytes())
    assert kept.take("a" * 32) is None


def test_a_key_says_teacher_views_their_order_number_and_distortions() -> None:
    pixels = RANDOM.integers(0, 256, (4, 6, 6, 3), np.uint8)
    distorted = np.zeros((4, 2), np.float32)
    given = [
        forward_key("teacher", pixels, None),
        forward_key("other", pixels, None),
        forward_key("teacher", pixels[::-1], None),
        forward_key("teacher", pixels[:3], None),
        forward_key("teacher", pixels.reshape(4, 9, 4, 3), None),
        forward_key("teacher", pixels, distorted),
        forward_key("teacher", pixels, distorted + 1),
    ]
    assert len(set(given)) == len(given)
    assert forward_key("teacher", pixels.copy(), None) == given[0]


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_what_is_not_whole_is_not_found(damage: bytes | None, folder: Path) -> None:
    kept, path = KeptForwards("run"), folder / "run" / ("a" * 32)
    kept.keep(path.name, raw())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data) if damage is None else damage)
    assert kept.take(path.name) is None


def test_half_of_the_free_disk_is_left_by_all_processes_of_a_run_together(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    usage, free = shutil.disk_usage(folder.parent), [1000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    first = KeptForwards("run")
    free[0] = 740
    second = KeptForwards("run")
    size = raw().patch.nbytes  # 240
    second.keep("a" * 32, raw(with_cls=False))
    assert (size, [path.name for path in (folder / "run").iterdir()]) == (240, ["a" * 32])
    free[0] = 739
    first.keep("b" * 32, raw(with_cls=False))
    assert [path.name for path in (folder / "run").iterdir()] == ["a" * 32]


def test_a_folder_that_cannot_be_made_keeps_nothing_and_refuses_nothing(folder: Path) -> None:
    folder.write_text("in the way")
    kept = KeptForwards("run")
    kept.keep("a" * 32, raw())
    assert kept.take("a" * 32) is None
    sweep_forwards()
    discard("run")


def _killed() -> None:
    KeptForwards("killed").keep("a" * 32, raw())
    KeptForwards("killed").keep("b" * 32, raw())
    os.kill(os.getpid(), signal.SIGKILL)


def test_leftovers_go_and_runs_under_way_stay(folder: Path) -> None:
    living = KeptForwards("living")
    child = multiprocessing.get_context("fork").Process(target=_killed)
    child.start()
    child.join()
    left = {path.name for path in folder.iterdir()}
    sweep_forwards()
    assert (left, {path.name for path in folder.iterdir()}) == (
        {"living", "living.lock", "killed", "killed.lock"},
        {"living", "living.lock"},
    )
    del living
    sweep_forwards()
    assert list(folder.iterdir()) == []
    assert new_run() != new_run()
