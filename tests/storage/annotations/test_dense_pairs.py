"""Layouts of pictures with masks or depth, and what is read from them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.annotations.dense_pairs import depth_pairs, pairs_digest, read_classes, read_depth, segmentation_pairs
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.sources.decode import BadImage
from numpy.typing import NDArray
from PIL import Image


def save(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pair(root: Path, name: str, mask: int = 1, folder: str = "annotations") -> None:
    save(root / "images" / f"{name}.jpg", np.full((4, 6, 3), 90, np.uint8))
    save(root / folder / f"{name}.png", np.full((4, 6), mask, np.uint8))


def test_ade20ks_folders_are_paired_by_name_in_order(tmp_path: Path) -> None:
    for name in ("training/b", "training/a", "validation/c"):
        pair(tmp_path, name)
    assert [one.id for one in segmentation_pairs(tmp_path, "train")] == ["training/a.jpg", "training/b.jpg"]
    (only,) = segmentation_pairs(tmp_path, "val")
    assert only.target == tmp_path / "annotations" / "validation" / "c.png"


def test_a_folder_without_splits_is_split_by_id_the_same_way_always(tmp_path: Path) -> None:
    for number in range(30):
        pair(tmp_path, f"{number}", folder="masks")
    train, val = (segmentation_pairs(tmp_path, split) for split in ("train", "val"))
    assert {one.id for one in train} | {one.id for one in val} == {f"{number}.jpg" for number in range(30)}
    assert 1 <= len(val) <= 12
    pair(tmp_path, "new", folder="masks")
    assert {one.id for one in val} <= {one.id for one in segmentation_pairs(tmp_path, "val")}


def test_the_digest_covers_every_byte(tmp_path: Path) -> None:
    pair(tmp_path, "training/a")
    pair(tmp_path, "validation/b")
    before = pairs_digest(segmentation_pairs(tmp_path, "train"))
    assert pairs_digest(segmentation_pairs(tmp_path, "train")) == before
    pair(tmp_path, "training/a", mask=2)
    assert pairs_digest(segmentation_pairs(tmp_path, "train")) != before


def test_masks_keep_their_numbers_whatever_their_mode(tmp_path: Path) -> None:
    classes = np.array([[0, 1], [150, 255]], np.uint8)
    picture = Image.fromarray(classes)
    palette = Image.fromarray(classes).convert("L")
    palette.putpalette([value for place in range(256) for value in (place, 255 - place, 7)])
    picture.save(tmp_path / "grey.png")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(classes.astype(np.uint16) * 3).save(tmp_path / "deep.png")
    assert read_classes(tmp_path / "grey.png").tolist() == read_classes(tmp_path / "palette.png").tolist() == classes.tolist()
    assert read_classes(tmp_path / "deep.png").tolist() == (classes.astype(int) * 3).tolist()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(BadImage, match="one channel"):
        read_classes(tmp_path / "colour.png")


def test_depth_is_in_metres(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1500]], np.uint16)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.array([[np.nan, 2.5]]))
    assert read_depth(tmp_path / "a.png").tolist() == [[0.0, 1.5]]
    assert read_depth(tmp_path / "a.png", 5000).tolist() == [[0.0, pytest.approx(0.3)]]
    assert read_depth(tmp_path / "b.npy").tolist() == [[0.0, 2.5]]
    np.save(tmp_path / "c.npy", np.zeros((2, 2, 2)))
    with pytest.raises(BadImage, match="expected metres"):
        read_depth(tmp_path / "c.npy")


@pytest.mark.parametrize("prefix", ["", "sync"])
def test_nyus_lists_are_found_below_their_folders(tmp_path: Path, prefix: str) -> None:
    save(tmp_path / prefix / "kitchen" / "rgb_1.jpg", np.zeros((4, 4, 3), np.uint8))
    lines = "/kitchen/rgb_1.jpg /kitchen/depth_1.png 518.8\n/kitchen/rgb_2.jpg None 518.8\n"
    (tmp_path / "nyu_train.txt").write_text(lines)
    (only,) = depth_pairs(tmp_path, "train")
    assert only.target == tmp_path / prefix / "kitchen" / "depth_1.png"
    (tmp_path / "nyu_train.txt").write_text("other.jpg other.png 1\n")
    with pytest.raises(BadInput, match=r"other\.jpg, is not below"):
        depth_pairs(tmp_path, "train")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder images or rgb"):
        segmentation_pairs(tmp_path, "train")
    save(tmp_path / "images" / "train" / "a.jpg", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    with pytest.raises(BadInput, match=r"a\.png is not there"):
        segmentation_pairs(tmp_path, "train")
    with pytest.raises(BadInput, match="no folder validation or val or test"):
        segmentation_pairs(tmp_path, "val")


def test_pictures_behind_links_are_found_and_pipes_are_not_opened(tmp_path: Path) -> None:
    pair(tmp_path / "elsewhere", "training/deep/a")
    for kind in ("images", "annotations"):
        (tmp_path / kind / "training").mkdir(parents=True)
        (tmp_path / kind / "training/linked").symlink_to(tmp_path / "elsewhere" / kind / "training/deep")
    (only,) = segmentation_pairs(tmp_path, "train")
    assert only.id == "training/linked/a.jpg"
    os.mkfifo(tmp_path / "images/training/pipe.jpg")
    save(tmp_path / "annotations/training/pipe.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(BadInput, match=r"pipe\.jpg cannot be read"):
        pairs_digest(segmentation_pairs(tmp_path, "train"))
