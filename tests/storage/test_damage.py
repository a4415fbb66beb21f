"""Damage of every kind: each later read returns exactly the right values or raises our own error (FAULTS 1, 3, 4)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, EupeError

from ..fault_log import Trials
from .made_up_store import Made, everything, files, reopen, same, with_features

pytestmark = pytest.mark.fault
BIT_FLIPS = [500, pytest.param(4500, marks=pytest.mark.long)]
CUTS = [200, pytest.param(800, marks=pytest.mark.long)]


def outcome(made: Made, right: list[np.typing.NDArray[np.generic]]) -> str:
    """'right', 'detected', or 'silent' for a full reading by a new process; any other exception passes through."""
    try:
        return "right" if same(everything(reopen(made)), right) else "silent"
    except EupeError:
        return "detected"


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("flips", BIT_FLIPS)
def test_no_flipped_bit_anywhere_is_silent(copied: Callable[[], Made], pristine: Made, flips: int) -> None:
    """A file is drawn first and a bit of it second, so that records, identities and metadata get their share beside the tokens."""
    made, right = copied(), everything(pristine)
    random = np.random.default_rng(flips)
    everywhere = files(made.folder)
    with Trials(1) as trials:
        for _ in range(flips):
            path = everywhere[random.integers(len(everywhere))]
            original = path.read_bytes()
            flip_bit(path, int(random.integers(8 * len(original))))
            trials.note(outcome(made, right))
            path.write_bytes(original)
    # What is not detected lies in bytes that no value depends on: checksums that stand beside a row but are not the record's.
    assert trials.counts["detected"] > 0.93 * flips


def damaged(data: bytes, how: int, random: np.random.Generator) -> bytes | None:
    """None: deleted; emptied, cut, grown at the end or the start, or a byte taken out of the middle."""
    cut = int(random.integers(1, max(2, len(data))))
    return [None, b"", data[:cut], data[:-1], data + b"\0", b"\0" + data, data[:cut] + data[cut + 1 :]][how]


@pytest.mark.parametrize("cuts", CUTS)
def test_no_deleted_emptied_cut_or_grown_file_is_silent(copied: Callable[[], Made], pristine: Made, cuts: int) -> None:
    made, right = copied(), everything(pristine)
    random = np.random.default_rng(cuts)
    everywhere = files(made.folder)
    with Trials(3) as trials:
        for trial in range(cuts):
            path = everywhere[random.integers(len(everywhere))]
            original, changed = path.read_bytes(), damaged(path.read_bytes(), trial % 7, random)
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            found = outcome(made, right)
            assert found == ("right" if changed == original else "detected"), (path, trial % 7)
            trials.note(found)
            path.write_bytes(original)
        assert outcome(made, right) == "right"


def swap(left: Path, right: Path) -> None:
    held = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(held)


KINDS = ["patch/c.{}.0.0.0", "patch_scale/c.{}.0.0.0", "cls/c.{}.0", "commits/00000{}.json"]


def test_swapped_shards_are_found(copied: Callable[[], Made], pristine: Made) -> None:
    """Records alone, objects alone, or both together: a position never means another image."""
    made, right = copied(), everything(pristine)
    folder = made.folder / "features" / made.features.key
    with Trials(4) as trials:
        for a, b in [(0, 1), (1, 3), (2, 4), (0, 4), (0, 2), (1, 2)]:
            for chosen in ([0], [1], [2], [3], [0, 1], [0, 1, 2], [0, 1, 2, 3]):
                pairs = [(folder / KINDS[n].format(a), folder / KINDS[n].format(b)) for n in chosen]
                for left, other in pairs:
                    swap(left, other)
                found = outcome(made, right)
                assert found == "detected", chosen
                trials.note(found)
                for left, other in pairs:
                    swap(left, other)
        assert outcome(made, right) == "right"


def test_copied_and_renamed_objects_are_found(copied: Callable[[], Made], pristine: Made) -> None:
    made, right = copied(), everything(pristine)
    folder = made.folder / "features" / made.features.key
    with Trials(4) as trials:
        for kind in KINDS:
            for a, b in [(0, 1), (3, 2), (4, 0)]:
                source, target = folder / kind.format(a), folder / kind.format(b)
                held = target.read_bytes()
                shutil.copy(source, target)
                trials.note(outcome(made, right))
                target.write_bytes(held)
                source.rename(source.with_suffix(".aside"))
                trials.note(outcome(made, right))
                source.with_suffix(".aside").rename(source)
        assert outcome(made, right) == "right"
        assert trials.counts == {"detected": 24}


def test_shards_of_another_feature_set_are_found(copied: Callable[[], Made], pristine: Made) -> None:
    made = copied()
    other = with_features(made, "int8", name="other")
    mine, theirs = (made.folder / "features" / key for key in (made.features.key, other.features.key))
    for path in files(mine):
        target = theirs / path.relative_to(mine)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    if made.features.digest == other.features.digest:  # the name is no part of the identity: this is the same set
        assert same(everything(reopen(other)), everything(pristine))
    changed = with_features(made, "fp16", name="third")
    (made.folder / "features" / changed.features.key / "commits").mkdir()
    shutil.copy(mine / "commits/000000.json", made.folder / "features" / changed.features.key / "commits/000000.json")
    with pytest.raises(CacheDamaged, match="belongs to shard 0 of"):
        reopen(changed).features.read(np.array([0]))


@pytest.mark.parametrize("kind", ["datasets", "views", "features"])
def test_a_renamed_folder_is_found(copied: Callable[[], Made], kind: str) -> None:
    made = copied()
    key = {"datasets": made.dataset.key, "views": made.views.key, "features": made.features.key}[kind]
    (made.folder / kind / key).rename(made.folder / kind / f"{key.split('@')[0]}@{'0' * 12}")
    store = reopen.__globals__["FeatureStore"].open(str(made.folder))
    with pytest.raises((CacheDamaged, BadInput), match=r"renamed|has no|unknown"):
        {"datasets": store.dataset, "views": store.view_set, "features": store.features}[kind](
            f"{key.split('@')[0]}@{'0' * 12}" if kind != "features" else key.split("@")[0]
        )


def test_damage_names_the_shard_and_says_what_to_do(copied: Callable[[], Made]) -> None:
    made = copied()
    path = made.folder / "features" / made.features.key / "patch/c.3.0.0.0"
    flip_bit(path, 80)
    fresh = reopen(made)
    fresh.features.read(np.arange(24))
    with pytest.raises(CacheDamaged, match=r"shard 3 of features/made-up@.*chunk 0 differs.*features verify"):
        fresh.features.read(np.array([24]))
    with pytest.raises(CacheDamaged, match=r"shard 3 of .*xxh3 differs"):
        fresh.features.group.verify(3)


def test_a_shard_that_changes_while_it_is_open_is_found(copied: Callable[[], Made]) -> None:
    made = copied()
    made.features.read(np.array([0]))
    path = made.folder / "features" / made.features.key / "patch/c.0.0.0.0"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheDamaged, match="ends"):
        made.features.read(np.array([7]))


def test_verify_finds_what_reading_rows_cannot_reach(copied: Callable[[], Made]) -> None:
    made = copied()
    path = made.folder / "features" / made.features.key / "patch/c.2.0.0.0"
    flip_bit(path, 8 * made.features.read(np.array([0])).patch.nbytes + 1)  # the stored checksum of row 0, beside the row
    fresh = reopen(made)
    fresh.features.read(np.arange(40))
    with pytest.raises(CacheDamaged, match="shard 2"):
        fresh.features.group.verify(2)
    for shard in (0, 1, 3, 4):
        fresh.features.group.verify(shard)
