"""Health says what is missing, failed or damaged, and never that something is sound which nobody looked at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eupe_pipeline.pipeline.reports.store_health import health
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.store import FeatureStore


def silent(event: Mapping[str, Any]) -> None:
    pass


def test_a_whole_set_is_there_and_is_good_once_verified(tiny_store: Any) -> None:
    reader = tiny_store.features()
    assert health(reader, silent).verdict == ("there", "complete, not verified")
    found = health(reader, silent, verified=True)
    assert found.verdict == ("good", "complete, every byte verified")
    assert (found.rows, found.images, found.committed, found.shards, found.damaged) == (48, 24, 3, 3, {})


def test_a_missing_shard_says_how_to_go_on(small_store: tuple[str, FeatureReader]) -> None:
    found = health(small_store[1], silent)
    assert not found.complete
    assert found.verdict == ("open", "1 shards missing: run the same `extract-features` again")


def test_failed_images_are_counted_and_named_with_their_reason(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-gaps")
    found = health(reader, silent)
    assert found.failed == 1
    assert found.reasons == [(reader.views.dataset.row(5).id, "broken")]
    assert found.verdict[1].endswith("1 images failed")


def test_a_changed_byte_is_found_only_by_verifying(small_store: tuple[str, FeatureReader]) -> None:
    url, reader = small_store
    record = reader.group.record(0)
    assert record is not None
    path = Path(url) / "features" / reader.key / record.objects["patch"].key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    again = FeatureStore.open(url).features(reader.key)
    assert health(again, silent).damaged is None
    found = health(again, silent, verified=True)
    assert found.damaged is not None
    assert list(found.damaged) == [0]
    assert found.verdict[0] == "bad"
