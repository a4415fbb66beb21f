"""Feature sets that hold some tokens of each view: written, read, checked, repaired, copied and deleted as whole ones are."""

from pathlib import Path

import numpy as np
import pytest
import tensorstore
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.features.codec import CODECS
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.maintenance import prune, verify

from .made_up_store import GRID, Made, commit, plan, reopen, tokens, with_features

KEPT = 4


def sampled(root: Path, codec: str = "int8", images: int = 8) -> Made:
    """A complete store that keeps 4 of each view's 6 tokens."""
    made = with_features(plan(root, images=images, codec="fp16"), codec, name="sampled", tokens_per_view=KEPT)
    for shard in range(made.views.shards):
        commit(made, shard)
    return made


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("codec", CODECS)
def test_stored_tokens_are_the_whole_set_s_at_the_drawn_places(tmp_path: Path, codec: str) -> None:
    made = sampled(tmp_path, codec)
    whole = with_features(made, codec, name="whole")
    for shard in range(made.views.shards):
        commit(whole, shard)
    rows = np.array([9, 0, 15, 3])
    some, every = made.features.read(rows), whole.features.read(rows)
    assert some.position is not None
    np.testing.assert_array_equal(some.position, np.concatenate([made.features.draw_positions(n) for n in range(2)])[rows])
    np.testing.assert_array_equal(made.features.decode(some), take_positions(whole.features.decode(every), some.position))
    np.testing.assert_array_equal(some.cls, every.cls)
    assert made.features.views.digest == whole.features.views.digest


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_python_and_tensorstore_read_every_array_to_our_values(tmp_path: Path, codec: str) -> None:
    features = sampled(tmp_path, codec).features
    rows, group = features.read(np.arange(features.rows)), features.open_zarr()
    ours = {"patch": rows.patch, "patch_scale": rows.scale, "cls": rows.cls, "patch_position": rows.position}
    assert set(group.array_keys()) == {name for name, values in ours.items() if values is not None}
    for name in group.array_keys():
        folder = tmp_path / "store" / "features" / features.key / name
        other = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}).result()
        np.testing.assert_array_equal(group[name][:], ours[name])
        np.testing.assert_array_equal(other.read().result(), ours[name])


@pytest.mark.parametrize("array", ["patch", "patch_scale", "patch_position"])
def test_damage_is_found_and_the_same_bytes_are_made_again(tmp_path: Path, array: str) -> None:
    made = sampled(tmp_path)
    victim = next((made.folder / "features" / made.features.key / array).glob("c.1.*"))
    before = victim.read_bytes()
    flip_a_bit(victim)
    made = reopen(made)
    damaged = verify(made.features)
    assert [one.shard for one in damaged] == [1]
    with pytest.raises(CacheDamaged):
        made.features.read(np.arange(8, 16))
    views = made.views.group.record(1)
    assert views is not None
    made.features.repair_shard(1, tokens(made.features, 1), {}, views.digest)
    assert victim.read_bytes() == before
    assert verify(made.features) == []


def test_places_of_a_lost_writer_are_adopted_only_when_they_are_ours(tmp_path: Path) -> None:
    made = sampled(tmp_path, "fp16")
    record = next((made.folder / "features" / made.features.key / "commits").glob("000000.json"))
    record.unlink()
    commit(reopen(made), 0, noise=1e-3)  # another machine's rounding
    record.unlink()
    made, found = reopen(made), tokens(made.features, 0)
    assert found.position is not None
    others = np.sort((found.position + 1) % 6, axis=1)
    with pytest.raises(CacheDamaged, match=r"patch_position.* cannot be adopted"):
        made.features.commit_shard(0, found._replace(position=others), {}, "")


def test_a_copy_and_a_deletion_take_every_array(tmp_path: Path) -> None:
    made = sampled(tmp_path / "one")
    copy = copy_features(made.store, made.features.key, FeatureStore.create(str(tmp_path / "two")))
    rows = np.arange(copy.rows)
    for left, right in zip(copy.read(rows), made.features.read(rows), strict=True):
        np.testing.assert_array_equal(left, right)
    gone = prune(made.store, made.features.key, dry_run=False)
    assert any("/patch_position/" in name for name in gone)
    assert not (made.folder / "features" / made.features.key).exists()


def test_places_that_no_grid_has_are_refused_at_the_commit(tmp_path: Path) -> None:
    made = with_features(plan(tmp_path), "int8", tokens_per_view=KEPT)
    found = tokens(made.features, 0)
    assert found.position is not None
    for row, value in ((3, GRID[0] * GRID[1]), (5, int(found.position[5, 1]))):
        position = found.position.copy()
        position[row, -1 if row == 3 else 0] = value
        with pytest.raises(BadInput, match=f"places of row {row} do not ascend"):
            made.features.commit_shard(0, found._replace(position=position), {}, "")


def test_a_failed_image_leaves_its_rows_out(tmp_path: Path) -> None:
    made = with_features(plan(tmp_path, images=4), "int8", tokens_per_view=KEPT)
    made.views.commit_shard(0, made.views.draw_shard(0), {})
    made.features.commit_shard(0, tokens(made.features, 0), {made.dataset.ids(1, 2)[0]: "broken"}, "")
    assert made.features.failed_rows().tolist() == [2, 3]
    made.features.read(np.array([0, 1, 4, 7]))
    with pytest.raises(CacheDamaged, match="image failed"):
        made.features.read(np.array([2]))
