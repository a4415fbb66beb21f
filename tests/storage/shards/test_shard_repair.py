"""A damaged shard is made whole in its place: whole rows keep their bytes, a kill at any write leaves the store no worse (FAULTS 26)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged, CacheMismatch, EupeError
from eupe_pipeline.storage.features.features import TokenRows
from eupe_pipeline.storage.objects.atomic_files import write_atomically
from eupe_pipeline.storage.objects.objects import LocalObjects
from eupe_pipeline.storage.shards.shard_repair import rebuild_from_rows
from eupe_pipeline.storage.upkeep.maintenance import verify
from eupe_pipeline.storage.upkeep.repair_views import repair_views

from tests.storage.upkeep.test_maintenance import contents

from ...fault_log import Trials
from ..made_up_store import Made, everything, reopen, same, tokens, with_features

ROWS = range(16, 24)  # of shard 2


def patch_of(made: Made, shard: int = 2) -> Path:
    return made.folder / f"features/{made.features.key}/patch/c.{shard}.0.0.0"


def row_step(made: Made) -> int:
    """Bytes of a row of patch tokens, with its checksum."""
    return made.features.empty(1).patch.nbytes + 4


def flip_row(made: Made, row: int) -> None:
    path = patch_of(made)
    data = bytearray(path.read_bytes())
    data[row * row_step(made)] ^= 8
    path.write_bytes(data)


def views_record(made: Made, shard: int = 2) -> str:
    record = made.views.group.record(shard)
    assert record is not None
    return record.digest


def repair_damaged(made: Made, found: TokenRows) -> None:
    made.features.repair_shard(2, found, {}, views_record(made))


def test_rows_that_are_whole_keep_their_bytes_and_only_the_damaged_one_is_the_other_machines(copied: Callable[[], Made]) -> None:
    made = copied()
    before, record = patch_of(made).read_bytes(), (made.folder / f"features/{made.features.key}/commits/000002.json").read_bytes()
    flip_row(made, 3)
    other = tokens(made.features, 2, noise=1e-2)
    repair_damaged(reopen(made), other)
    after, step = patch_of(made).read_bytes(), row_step(made)
    assert [n for n in range(8) if after[n * step : (n + 1) * step] != before[n * step : (n + 1) * step]] == [3]
    found = reopen(made).features.read(np.array([19]))  # codes and scales of one forward
    assert found.scale is not None
    assert other.scale is not None
    assert (found.patch.tobytes(), found.scale.tobytes()) == (other.patch[3].tobytes(), other.scale[3].tobytes())
    assert (made.folder / f"features/{made.features.key}/commits/000002.json").read_bytes() != record
    assert verify(reopen(made).features) == []


def test_tokens_that_are_equal_change_the_object_back_and_nothing_else(copied: Callable[[], Made]) -> None:
    made = copied()
    before = contents(made.folder)
    flip_row(made, 0)
    stamps = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*") if path.is_file() and path != patch_of(made)}
    repair_damaged(reopen(made), tokens(made.features, 2))
    assert contents(made.folder) == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_another_teachers_tokens_fill_no_gap(copied: Callable[[], Made]) -> None:
    made = copied()
    flip_row(made, 5)
    damaged = contents(made.folder)
    with pytest.raises(CacheMismatch, match="is whole, and what is computed now differs"):
        repair_damaged(reopen(made), tokens(made.features, 2, noise=2.0))
    assert contents(made.folder) == damaged


def test_a_shard_without_its_record_takes_over_what_is_right_of_its_objects(copied: Callable[[], Made]) -> None:
    made = copied()
    before, step = patch_of(made).read_bytes(), row_step(made)
    flip_row(made, 5)
    (made.folder / f"features/{made.features.key}/commits/000002.json").write_bytes(b"")
    repair_damaged(reopen(made), tokens(made.features, 2, noise=1e-2))
    after = patch_of(made).read_bytes()
    assert [n for n in range(8) if after[n * step : (n + 1) * step] != before[n * step : (n + 1) * step]] == [5]
    assert verify(reopen(made).features) == []


def test_what_stands_beside_the_rows_needs_neither_teacher_nor_images(copied: Callable[[], Made]) -> None:
    made = copied()
    before, step = patch_of(made).read_bytes(), row_step(made)
    shutil.move(Path(made.dataset.source), made.folder.parent / "gone")
    try:
        for data in (
            before[: step - 2] + b"\0\1" + before[step:],  # a checksum
            before[:-20] + b"\7" + before[-19:],  # the index
            before[:-100],
            before + b"more",
        ):
            patch_of(made).write_bytes(data)
            group = reopen(made).features.group
            record = group.record(2)
            assert record is not None
            rebuilt = rebuild_from_rows(group, record)
            assert rebuilt is not None
            rebuilt.write_to(group)
            assert patch_of(made).read_bytes() == before
        patch_of(made).write_bytes(b"\0" + before)
        shifted = reopen(made).features.group
        record = shifted.record(2)
        assert record is not None
        assert rebuild_from_rows(shifted, record) is None
    finally:
        shutil.move(made.folder.parent / "gone", Path(made.dataset.source))


def test_views_are_drawn_without_images_where_no_pixel_is_needed(copied: Callable[[], Made]) -> None:
    made = copied()
    before = contents(made.folder)
    shutil.move(Path(made.dataset.source), made.folder.parent / "gone")
    try:
        (made.folder / f"views/{made.views.key}/crop/c.1.0").write_bytes(b"")
        (made.folder / f"views/{made.views.key}/commits/000003.json").unlink()  # features name its digest
        fresh = reopen(made)
        known = fresh.features.group.record(3)
        assert known is not None
        repair_views(fresh.views, 1, set).write_to(fresh.views.group)
        repair_views(fresh.views, 3, lambda: {known.views_record}).write_to(fresh.views.group)
        assert contents(made.folder) == before
        (made.folder / f"views/{made.views.key}/pixel_digest/c.1.0").unlink()
        with pytest.raises(CacheMismatch, match="is not at"):
            repair_views(reopen(made).views, 1, set)
    finally:
        shutil.move(made.folder.parent / "gone", Path(made.dataset.source))


def test_views_that_come_out_otherwise_than_their_record_says_are_refused(copied: Callable[[], Made]) -> None:
    made = copied()
    (made.folder / f"views/{made.views.key}/commits/000000.json").unlink()
    damaged = contents(made.folder)
    with pytest.raises(CacheMismatch, match="not the one that feature sets were made from"):
        repair_views(reopen(made).views, 0, lambda: {"0" * 64})
    assert contents(made.folder) == damaged


def test_another_set_over_the_same_views_keeps_every_byte(copied: Callable[[], Made]) -> None:
    made = copied()
    second = with_features(made, "fp16", name="second")
    for shard in range(made.views.shards):
        second.features.commit_shard(shard, tokens(second.features, shard), {}, views_record(made, shard))
    before, right = contents(made.folder), everything(reopen(second))
    (made.folder / f"views/{made.views.key}/crop/c.2.0").unlink()
    flip_row(made, 1)
    fresh = reopen(made)
    repair_views(fresh.views, 2, set).write_to(fresh.views.group)
    repair_damaged(fresh, tokens(made.features, 2))
    assert contents(made.folder) == before
    assert same(everything(reopen(second)), right)


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.fault
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_a_kill_at_any_write_loses_no_row_and_the_next_repair_ends_it(
    copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    """Before a write, and after it; with fresh tokens that are equal, and with another machine's, which change the record."""
    made = copied()
    right, pristine = {row: reopen(made).features.read(np.array([row])).patch.tobytes() for row in ROWS}, contents(made.folder)
    real = LocalObjects.replace
    with Trials(26) as trials:
        for step in range(20):
            flip_row(made, 2)
            (made.folder / f"features/{made.features.key}/cls/c.2.0").unlink()
            left = iter(range(step))

            def replace(self: LocalObjects, key: str, data: bytes, left: object = left) -> None:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise Killed
                write_atomically(self.root / key, data)
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise Killed

            monkeypatch.setattr(LocalObjects, "replace", replace)
            ended = True
            try:
                repair_damaged(reopen(made), tokens(made.features, 2, noise))
            except Killed:
                ended = False
            monkeypatch.setattr(LocalObjects, "replace", real)
            for row in set(ROWS) - {18}:  # they could be read before
                out = np.empty((1, *made.features.grid, made.features.patch_dim), np.int8)
                reopen(made).features.group.read(np.array([row]), ["patch"], {"patch": out})
                assert out.tobytes() == right[row]
            repair_damaged(reopen(made), tokens(made.features, 2, noise))
            assert verify(reopen(made).features) == []
            trials.note("recovered")
            for name, data in pristine.items():
                (made.folder / name).write_bytes(data)
            if ended:
                break
        assert ended


def test_a_shard_of_other_views_is_made_anew_as_a_whole(copied: Callable[[], Made]) -> None:
    made = copied()
    before = contents(made.folder)
    made.features.group.discard(2)
    made.features.commit_shard(2, tokens(made.features, 2, noise=0.5), {}, "0" * 64)
    repair_damaged(reopen(made), tokens(made.features, 2))
    assert contents(made.folder) == before


def test_images_that_fail_now_and_did_not_then_are_refused(copied: Callable[[], Made]) -> None:
    made = copied()
    flip_row(made, 4)
    damaged, failed = contents(made.folder), {made.dataset.ids(10, 11)[0]: "cut"}
    with pytest.raises(CacheMismatch, match="the images that fail now are not those of its record"):
        reopen(made).features.repair_shard(2, tokens(made.features, 2), failed, views_record(made))
    assert contents(made.folder) == damaged
    with pytest.raises((CacheDamaged, EupeError)):
        reopen(made).features.read(np.array([20]))
