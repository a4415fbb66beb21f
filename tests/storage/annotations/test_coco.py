"""COCO's layout is read as it is, and what cannot be learnt from is refused with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.annotations.coco import check_together, coco_digest, pictures_of, read_coco
from eupe_pipeline.storage.core.errors import BadInput
from PIL import Image


def write_split(root: Path, split: str = "train", change: Callable[[dict[str, Any]], None] = lambda content: None) -> Path:
    """Two pictures: one with an object of each of two categories and a crowd, one with nothing."""
    content: dict[str, Any] = {
        "images": [{"id": 9, "file_name": "b.png", "width": 40, "height": 30}, {"id": 4, "file_name": "a.png", "width": 20, "height": 20}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [2, 3, 10, 12], "area": 60.5},
            {"id": 5, "image_id": 9, "category_id": 3, "bbox": [30, 20, 10.4, 10], "iscrowd": 0},
            {"id": 6, "image_id": 9, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }
    change(content)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    (root / f"{split}2017").mkdir(exist_ok=True)
    for name, size in (("a.png", (20, 20)), ("b.png", (40, 30))):
        Image.new("RGB", size).save(root / f"{split}2017" / name)
    return root


def test_ids_with_holes_empty_pictures_and_crowds_are_read(tmp_path: Path) -> None:
    split = read_coco(write_split(tmp_path), "train")
    assert (split.category_ids, split.names, split.boxes) == ((3, 18), ("car", "dog"), 2)
    first, empty = split.pictures
    boxes, categories = first.learnt()
    assert boxes.tolist() == [[2, 3, 12, 15], [30, 20, 40, 30]], "corners, without the crowd, cut at the edge"
    assert categories.tolist() == [1, 0]
    assert [one.area for one in first.objects] == [60.5, pytest.approx(104), 1200]
    assert empty.learnt()[0].shape == (0, 4)


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "train", "images/train", "images"])
def test_pictures_are_found_in_every_usual_folder(tmp_path: Path, place: str) -> None:
    root = write_split(tmp_path)
    (root / "train2017").rename(root / "moved")
    (root / place).parent.mkdir(exist_ok=True)
    (root / "moved").rename(root / place)
    assert read_coco(root, "train").pictures[0].path == root / place / "b.png"


def wrong(kind: str, number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[kind][number].update(values)


@pytest.mark.parametrize(("change", "why"), [
    (wrong("images", 1, file_name="c.png"), r"the picture c.png of image 4 is not in .*train2017"),
    (wrong("annotations", 0, bbox=[35, 3, 10, 12]), r"annotation 1 has the box \[35.0, 3.0, 10.0, 12.0\].*outside of its picture b.png"),
    (wrong("annotations", 0, bbox=[-5, 3, 10, 12]), "outside of its picture"),
    (wrong("annotations", 0, bbox=[5, 3, 0, 12]), "has an empty box"),
    (wrong("annotations", 0, bbox=[5, 3, 2]), "has no bbox of four numbers"),
    (wrong("annotations", 1, category_id=4), "annotation 5 is of category 4, and the categories are 3, 18"),
    (wrong("annotations", 1, image_id=5), "annotation 5 is of image 5, which is not in images"),
    (wrong("annotations", 1, id=1), "the id 1 stands for several annotations"),
    (wrong("categories", 1, id=18), "the id 18 stands for several categories"),
    (wrong("images", 0, id="9"), "id must be a whole number, got '9'"),
    (lambda content: content.pop("categories"), "is not COCO's: expected an object with the lists"),
])  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        read_coco(write_split(tmp_path, change=change), "train")


def test_missing_files_and_splits_that_do_not_fit_are_told(tmp_path: Path) -> None:
    root = write_split(tmp_path)
    with pytest.raises(BadInput, match=r"has no instances_val\*.json"):
        read_coco(root, "val")
    write_split(root, "val", wrong("categories", 0, name="wolf"))
    with pytest.raises(BadInput, match="have different categories"):
        check_together(read_coco(root, "train"), read_coco(root, "val"))
    write_split(root, "val", lambda content: content.update(annotations=[]))
    with pytest.raises(BadInput, match="has no box that counts"):
        check_together(read_coco(root, "train"), read_coco(root, "val"))
    (root / "annotations" / "instances_train.json").write_text("{}")
    with pytest.raises(BadInput, match="several annotations for train"):
        read_coco(root, "train")


def test_the_digest_follows_pictures_and_objects(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        split = read_coco(root, "train")
        return coco_digest(split, pictures_of(split))

    one = digest(write_split(tmp_path / "one"))
    assert digest(write_split(tmp_path / "same")) == one
    assert digest(write_split(tmp_path / "moved", change=wrong("annotations", 0, bbox=[3, 3, 10, 12]))) != one
    other = write_split(tmp_path / "picture")
    Image.new("RGB", (20, 20), "red").save(other / "train2017" / "a.png")
    assert digest(other) != one
