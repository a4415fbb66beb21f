"""The catalogue says what is there, what is missing, and which shard is damaged; it never writes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.catalog import (
    compact_features,
    copy_feature_set,
    list_store,
    prune_features,
    show_features,
    summarised,
    verify_features,
)
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.features.statistics import STD_FLOOR, Statistics

Store = tuple[str, FeatureReader]


class Events(list[Mapping[str, Any]]):
    """Keeps the events it is called with."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.append(event)


def state(url: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def test_a_store_is_listed_with_how_much_of_each_set_is_there(small_store: Store) -> None:
    url, reader = small_store
    found = list_store(store=url, on_event=Events())
    (dataset,) = found["datasets"]
    assert found["datasets"][dataset] == {"images": 24, "labels": 3}
    views = {"dataset": dataset, "kind": "random_resized_crop", "views_per_image": 2, "photometric": "none", "pixels": None}
    assert found["views"][reader.views.key] == views
    listed = found["features"][reader.key]
    assert listed["shards"] == "2 of 3"
    assert listed["rows"] == 48
    on_disk = sum(path.stat().st_size for path in Path(url, "features", reader.key).rglob("*") if path.is_file())
    assert 0 < listed["bytes"] <= on_disk


def test_an_unfinished_or_altered_set_is_named_and_hides_no_other(small_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    url, reader = small_store
    unfinished = Path(url, "features", "half@0123456789ab")
    unfinished.mkdir()
    (unfinished / "zarr.json").write_text("{}")
    found = list_store(store=url, on_event=Events())
    assert reader.key in found["features"]
    assert list(found["unreadable"]) == ["features/half@0123456789ab"]
    identity = Path(url, "features", reader.key, "identity.json")
    identity.write_bytes(identity.read_bytes()[:-1])
    found = list_store(store=url, on_event=Events())
    assert "identity.json is damaged" in found["unreadable"][f"features/{reader.key}"]
    assert reader.views.key in found["views"]
    assert main(["features", "ls", "--store", url]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert prune_features(key="tiny-int8", store=url, dry_run=True, on_event=Events())["objects"] > 0


def test_one_set_is_shown_with_its_identity_and_what_is_missing(small_store: Store) -> None:
    url, reader = small_store
    shown = show_features(key="tiny-int8", store=url, on_event=Events())
    assert shown["key"] == reader.key
    assert (shown["grid"], shown["patch_token_width"], shown["complete"], shown["missing_shards"]) == ("2×2", 48, False, [2])
    assert shown["identity"] == reader.identity
    assert (shown["photometric"], shown["pixels"]) == ("none", None)
    on_disk = sum(path.stat().st_size for path in Path(url, "views", reader.views.key).rglob("c.*"))
    assert shown["views_bytes"] == on_disk


def test_statistics_are_shown_in_short_for_class_and_patch_tokens_apart(small_store: Store) -> None:
    url, reader = small_store
    shown = show_features(key="tiny-int8", store=url, on_event=Events())["statistics"]
    assert (shown["method"], shown["count"], shown["deviation_floor"]) == ("mean and std", 48, 1e-3)
    for kind, std in (("cls", reader.statistics.cls_std), ("patch", reader.statistics.patch_std)):
        assert std is not None
        assert shown["near_dead_channels"][kind] == {"count": 0, "of": 48, "first": []}
        found = {"least": std.min(), "median": pytest.approx(np.median(std)), "greatest": std.max()}
        assert shown["over_channels"][f"{kind}_std"] == found


def test_channels_that_hardly_move_are_counted_and_the_first_named() -> None:
    std = np.ones(40, np.float32)
    std[3:33] = STD_FLOOR
    shown = summarised(Statistics(None, None, np.zeros(40, np.float32), std, 100))
    assert shown["near_dead_channels"] == {"patch": {"count": 30, "of": 40, "first": list(range(3, 19))}}
    assert set(shown["over_channels"]) == {"patch_mean", "patch_std"}


def test_a_set_is_shown_as_text_and_as_json(small_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    url, reader = small_store
    assert main(["features", "show", "tiny-int8", "--store", url]) == 0
    text = capsys.readouterr().out
    for line in ("rows: 48", "bytes_of_a_view: ", "complete: no", "tokens_per_view: 4", "deviation_floor: 0.001", "near_dead_channels"):
        assert line in text
    assert main(["features", "show", "tiny-int8", "--store", url, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["identity"] == reader.identity
    assert result["statistics"]["digest"] == reader.statistics.digest


def test_a_sound_set_verifies_and_nothing_is_written(small_store: Store) -> None:
    url, reader = small_store
    before, events = state(url), Events()
    result = verify_features(key="tiny-int8", store=url, on_event=events)
    assert (result["verified"], result["missing_shards"], result["damaged"]) == (2, [2], {})
    assert [event["done"] for event in events if reader.key in str(event["stage"])] == [1, 2]
    assert result["views_damaged"] == {}
    assert state(url) == before


def test_one_flipped_bit_is_found_and_the_other_shards_are_still_checked(small_store: Store) -> None:
    url, reader = small_store
    record = reader.group.record(0)
    assert record is not None
    victim = Path(url, "features", reader.key, record.objects["patch"].key)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    events = Events()
    result = verify_features(key="tiny-int8", store=url, on_event=events)
    assert list(result["damaged"]) == ["0"]
    assert result["verified"] == 1
    assert "shard 0" in next(str(event["text"]) for event in events if event["event"] == "warning")


def test_a_damaged_shard_of_the_views_is_found_beside_sound_features(small_store: Store) -> None:
    url, reader = small_store
    victim = Path(url, "views", reader.views.key, "crop", "c.1.0")
    data = bytearray(victim.read_bytes())
    data[3] ^= 1
    victim.write_bytes(data)
    result = verify_features(key="tiny-int8", store=url, on_event=Events())
    assert (list(result["damaged"]), list(result["views_damaged"])) == ([], ["1"])


def test_a_lost_object_is_found(small_store: Store) -> None:
    url, reader = small_store
    record = reader.group.record(1)
    assert record is not None
    Path(url, "features", reader.key, record.objects["cls"].key).unlink()
    assert list(verify_features(key="tiny-int8", store=url, on_event=Events())["damaged"]) == ["1"]


def test_an_unknown_set_names_the_nearest(small_store: Store) -> None:
    with pytest.raises(BadInput, match="tiny-int8"):
        show_features(key="tiny-int9", store=small_store[0], on_event=Events())


def test_a_check_by_instalments_covers_every_shard_once(small_store: Store) -> None:
    url, _ = small_store
    parts = [verify_features(key="tiny-int8", store=url, subset=f"{part}/2", on_event=Events()) for part in (1, 2)]
    assert sum(len(part["damaged"]) for part in parts) == 0
    assert [(part["verified"], part["missing_shards"]) for part in parts] == [(1, [2]), (1, [])]
    with pytest.raises(BadInput, match="k/n"):
        verify_features(key="tiny-int8", store=url, subset="half", on_event=Events())


def test_pruning_says_what_would_go_and_then_removes_it(small_store: Store) -> None:
    url, reader = small_store
    told = prune_features(key=reader.key, store=url, dry_run=True, on_event=Events())
    assert reader.key in list_store(store=url, on_event=Events())["features"]
    events = Events()
    done = prune_features(key=reader.key, store=url, dry_run=False, on_event=events)
    assert done["objects"] == told["objects"] > 0
    assert [event["done"] for event in events] == list(range(1, done["objects"] + 1))
    assert reader.key not in list_store(store=url, on_event=Events())["features"]


def test_a_copy_in_another_store_is_the_same_set(small_store: Store, tmp_path: Path) -> None:
    url, reader = small_store
    target = str(tmp_path / "other")
    first = copy_feature_set(key=reader.key, store=url, target=target, on_event=Events())
    assert (first["key"], first["bytes"]) == (reader.key, reader.stored_bytes())
    before = state(target)
    assert copy_feature_set(key=reader.key, store=url, target=target, on_event=Events()) == first
    assert state(target) == before
    shown = [show_features(key=reader.key, store=where, on_event=Events()) for where in (url, target)]
    assert shown[0] == shown[1]


def test_an_incomplete_span_is_not_compacted(small_store: Store) -> None:
    url, reader = small_store
    assert compact_features(key=reader.key, store=url, on_event=Events())["ledgers"]["features"] == 0


def test_compacting_tells_how_far_it_is(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    events, url = Events(), str(tmp_path / "store")
    found = compact_features(key="tiny-int8", store=url, on_event=events)
    assert found["ledgers"] == {"features": 1, "views": 1}
    assert [(event["done"], event["total"]) for event in events] == [(1, 3), (2, 3), (3, 3)] * 2
    assert show_features(key="tiny-int8", store=url, on_event=Events())["complete"]
