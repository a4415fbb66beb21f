"""SPair-71k's annotations: what is read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.annotations.spair import keypoint_pairs, pairs_digest
from eupe_pipeline.storage.core.errors import BadInput


def annotate(root: Path, name: str, **changed: Any) -> None:
    said = {
        "src_imname": "a.jpg", "trg_imname": "b.jpg", "category": "cow", "src_kps": [[1, 2], [3, 4]], "trg_kps": [[5, 6], [7, 8]],
        "trg_bndbox": [10, 20, 40, 30], **changed,
    }  # fmt: skip
    (root / "PairAnnotation" / "test").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / "cow").mkdir(parents=True, exist_ok=True)
    for picture in ("a.jpg", "b.jpg"):
        (root / "JPEGImages" / "cow" / picture).write_bytes(picture.encode())
    (root / "PairAnnotation" / "test" / f"{name}.json").write_text(json.dumps(said))


def test_pairs_come_in_order_with_points_and_the_boxs_longer_side(tmp_path: Path) -> None:
    annotate(tmp_path, "000002-a-b:cow")
    annotate(tmp_path, "000001-a-b:cow", trg_kps=[[0, 0], [1, 1]])
    first, second = keypoint_pairs(tmp_path)
    assert (first.id, second.id) == ("000001-a-b:cow", "000002-a-b:cow")
    assert np.array_equal(second.target_points, [[5, 6], [7, 8]])
    assert (second.category, second.longer_side_px) == ("cow", 30)


def test_the_digest_covers_annotations_and_pictures(tmp_path: Path) -> None:
    annotate(tmp_path, "1")
    before = pairs_digest(tmp_path, "test", keypoint_pairs(tmp_path))
    (tmp_path / "JPEGImages" / "cow" / "b.jpg").write_bytes(b"another")
    changed = pairs_digest(tmp_path, "test", keypoint_pairs(tmp_path))
    annotate(tmp_path, "1", trg_bndbox=[0, 0, 9, 9])
    assert len({before, changed, pairs_digest(tmp_path, "test", keypoint_pairs(tmp_path))}) == 3


@pytest.mark.parametrize(("changed", "why"), [
    ({"trg_kps": [[1, 2]]}, "not whole"),
    ({"src_kps": [], "trg_kps": []}, "not whole"),
    ({"trg_bndbox": [1, 2]}, "not whole"),
    ({"trg_kps": [[1, float("nan")], [3, 4]]}, "a keypoint is not a number"),
    ({"trg_bndbox": [5, 5, 5, 5]}, "its box is empty"),
    ({"trg_imname": "c.jpg"}, "is not there"),
    ({"src_kps": None}, "not the annotation of a pair"),
])  # fmt: skip
def test_a_broken_annotation_is_named(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    annotate(tmp_path, "1", **changed)
    with pytest.raises(BadInput, match=why):
        keypoint_pairs(tmp_path)
