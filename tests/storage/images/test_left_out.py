"""What is left out stays countable however much it is, and indexes of before, which listed all of it, open as ever."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.core.identity import canonical_json, digest
from eupe_pipeline.storage.images import indexing
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.left_out import FIRST_NAMES, LeftOutCounts
from eupe_pipeline.storage.sources.source_items import LeftOut, Skipped, SourceImage, SourceItem
from eupe_pipeline.storage.store import FeatureStore

from ..damaged_tars import picture


def test_an_identity_stays_small_however_much_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(filesystem: Any, root: str, path: str) -> Iterator[SourceItem]:
        yield SourceImage("1.png", "1.png", "file", 0, picture(1), None)
        for number in range(100_000):
            yield broken
            yield LeftOut(f"{number}.txt", "files ending .txt", plain=True)

    broken = Skipped("a" * 120, "not an image")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(picture(1))
    monkeypatch.setattr(indexing, "walk", walk)
    store = FeatureStore.create(str(tmp_path / "store"))
    made = build_index(store.objects, str(tmp_path / "photos"), "x", max_bad_share=1.0)
    assert made.left_out == store.dataset("x").left_out == {"not an image": 100_000, "files ending .txt": 100_000}
    assert Path(store.url, "datasets", made.key, "identity.json").stat().st_size < 10_000


def test_counts_keep_the_first_names_and_are_bounded_in_kinds() -> None:
    counts = LeftOutCounts()
    for number in range(1000):
        counts.add(Skipped(f"{number}.png", f"{number} bytes too many"))
        counts.add(LeftOut(f"file.{number}", f"files ending .{number}", plain=True))
        counts.add(LeftOut(f"{number}.cls", "labels that belong to no image"))
    assert counts.broken == 1000
    assert sum(counts.counts.values()) == 3000
    assert len(counts.counts) <= 101
    assert list(counts.first) == [f"{number}.png" for number in range(FIRST_NAMES)]
    (labels,) = [line for line, is_warning in counts.lines() if line.startswith("labels")]
    assert labels == "labels that belong to no image: 1,000 (0.cls; 1.cls; 2.cls; …)"


def test_text_tables_and_the_like_count_for_no_limit_but_a_broken_image_does(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    (tmp_path / "photos").mkdir()
    for name in ("1.txt", "2.json", "3.csv", "4.xml", "1.png"):
        (tmp_path / "photos" / name).write_bytes(picture(1) if name == "1.png" else b"text")
    assert len(build_index(store.objects, str(tmp_path / "photos"), "x", max_bad_share=0.0)) == 1
    (tmp_path / "photos/2.jfif").write_bytes(b"no JPEG")
    with pytest.raises(BadInput, match=r"1 of 2 samples .*2\.jfif: not an image"):
        build_index(store.objects, str(tmp_path / "photos"), "x", max_bad_share=0.4)


def rewritten(store: FeatureStore, key: str, **fields: Any) -> None:
    """Put other fields into a dataset's identity; None removes one."""
    path = Path(store.url, "datasets", key, "identity.json")
    described = {**json.loads(path.read_bytes()), **fields}
    del described["file_digest"]
    described = {name: value for name, value in described.items() if value is not None}
    path.unlink()
    path.write_bytes(canonical_json({**described, "file_digest": digest(described)}))


def test_indexes_of_before_open_with_their_whole_table(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    (tmp_path / "photos").mkdir()
    for name in ("1.jpg", "1.seg.png", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(picture(1))
    made = build_index(store.objects, str(tmp_path / "photos"), "x")
    assert not store.dataset("x").has_targets
    table = {f"{number}.png": "not an image" for number in range(2000)}
    rewritten(store, made.key, skipped=table, left_out=None, without_targets=None)
    opened = store.dataset("x")
    assert (opened.skipped, opened.left_out, opened.has_targets) == (table, {}, True)
    assert opened.read_image_bytes(0) == picture(1)
    wrongs: list[dict[str, Any]] = [{"left_out": {"x": "many"}}, {"left_out": []}, {"left_out": 3}]
    for wrong in wrongs:
        rewritten(store, made.key, **wrong)
        with pytest.raises(CacheDamaged):
            store.dataset("x")
