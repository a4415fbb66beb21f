"""A layout check tells everything that a dataset's folder lacks at once, with the official counts where it is an official dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.annotations import dense_layout, pair_layout
from eupe_pipeline.storage.annotations.coco_layout import coco_layout
from eupe_pipeline.storage.annotations.dense_layout import depth_layout, segmentation_layout
from eupe_pipeline.storage.annotations.layout_report import LayoutReport
from eupe_pipeline.storage.annotations.pair_layout import class_folders, correspondence_layout
from PIL import Image


def picture(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3) if mode == "RGB" else (4, 4), 7, np.uint8)).save(path)
    return path


def told(report: LayoutReport) -> str:
    return "\n".join(finding["missing"] for finding in report.findings)


@pytest.fixture
def ade20k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dense_layout, "ADE20K_PICTURES", {"train": 4, "val": 2})
    for split, folder, count in (("train", "training", 4), ("val", "validation", 2)):
        for number in range(1, count + 1):
            picture(tmp_path / "images" / folder / f"ADE_{split}_{number:08d}.jpg")
            picture(tmp_path / "annotations" / folder / f"ADE_{split}_{number:08d}.png", "L")
    return tmp_path


def test_the_official_counts_are_the_published_ones() -> None:
    assert dense_layout.ADE20K_PICTURES == {"train": 20_210, "val": 2_000}
    assert dense_layout.NYU_PICTURES == {"train": 24_231, "val": 654}
    assert pair_layout.SPAIR_PAIRS == {"trn": 53_340, "val": 5_384, "test": 12_234}
    assert sum(pair_layout.SPAIR_PAIRS.values()) == 70_958
    assert len(pair_layout.SPAIR_CATEGORIES) == 18
    assert pair_layout.IMAGENET_PICTURES == {"train": 1_281_167, "test": 50_000}


def test_a_whole_ade20k_lacks_nothing(ade20k: Path) -> None:
    report = segmentation_layout(ade20k)
    assert report.result()["complete"]
    assert report.dataset == "ADE20k"
    assert report.found == {"train pictures": 4, "train masks": 4, "val pictures": 2, "val masks": 2}


def test_everything_that_ade20k_lacks_is_told_at_once(ade20k: Path) -> None:
    (ade20k / "images/training/ADE_train_00000002.jpg").unlink()
    (ade20k / "annotations/training/ADE_train_00000004.png").write_bytes(b"")
    (ade20k / "annotations/validation/ADE_val_00000001.png").unlink()
    picture(ade20k / "images/validation/ADE_val_00000009.jpg")
    report = segmentation_layout(ade20k)
    lines = told(report).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("1 of 4 pictures of train are missing")
    assert "ADE_train_00000002.jpg" in lines[0]
    assert lines[1] == "1 masks of train are empty files: ADE_train_00000004.png"
    assert "ADE_val_00000009.jpg" in lines[2]
    assert "none of ADE20k's" in lines[2]
    assert lines[3].startswith("1 of 2 masks of val are missing")
    assert all("ADEChallengeData2016" in finding["do"] for finding in (report.findings[0], report.findings[1], report.findings[3]))


def test_a_part_of_ade20k_is_held_against_the_whole(ade20k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_layout, "ADE20K_PICTURES", {"train": 20_210, "val": 2_000})
    assert "20,206 of 20,210 pictures of train are missing" in told(segmentation_layout(ade20k))


def test_masks_of_ones_own_need_a_mask_a_picture_and_no_count(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "deep" / "a.jpg")
        picture(tmp_path / "masks" / split / "deep" / "a.png", "L")
    assert segmentation_layout(tmp_path).result()["complete"]
    picture(tmp_path / "images/train/b.jpg")
    picture(tmp_path / "images/train/c.jpg").write_bytes(b"")
    found = told(segmentation_layout(tmp_path))
    assert "2 pictures of train have no mask: train/b, train/c" in found
    assert "1 pictures of train are empty files: c.jpg" in found


@pytest.mark.parametrize("check", [segmentation_layout, depth_layout])
def test_missing_folders_are_named(check: Any, tmp_path: Path) -> None:
    assert told(check(tmp_path / "no"))
    (tmp_path / "images" / "train").mkdir(parents=True)
    assert "with the " in told(check(tmp_path))


def test_a_folder_without_splits_is_whole_and_one_split_alone_is_not(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "masks/a.png", "L")
    assert segmentation_layout(tmp_path).result()["complete"]
    (tmp_path / "images/train").mkdir()
    assert "no folder validation or val or test" in told(segmentation_layout(tmp_path))


def nyu(root: Path, monkeypatch: pytest.MonkeyPatch, prefix: str = "sync") -> Path:
    monkeypatch.setattr(dense_layout, "NYU_PICTURES", {"train": 3, "val": 2})
    for name, count in (("nyu_train.txt", 3), ("nyu_test.txt", 2)):
        lines = [f"/kitchen/{name[4:-4]}_{number}.jpg /kitchen/{name[4:-4]}_{number}.png 518.8579" for number in range(count)]
        for line in lines:
            for path in line.split()[:2]:
                picture(root / prefix / path[1:], "L" if path.endswith("png") else "RGB")
        (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("prefix", ["", "sync", "nyu"])
def test_a_whole_nyu_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    report = depth_layout(nyu(tmp_path, monkeypatch, prefix))
    assert report.result()["complete"], report.findings
    assert (report.dataset, report.found) == ("NYUv2", {"train pictures": 3, "val pictures": 2})


def test_everything_that_nyu_lacks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = nyu(tmp_path, monkeypatch)
    (root / "sync/kitchen/train_0.jpg").unlink()  # the first one, by which the folder is found otherwise
    (root / "sync/kitchen/test_1.png").write_bytes(b"")
    (root / "nyu_test.txt").write_text((root / "nyu_test.txt").read_text() + "alone\n/kitchen/x.jpg /kitchen/x.png 1\n")
    found = told(depth_layout(root))
    assert "1 pictures of nyu_train.txt are not there: kitchen/train_0.jpg" in found
    assert "1 lines of nyu_test.txt are not `RGB DEPTH FOCAL`: 3" in found
    assert "val pictures: 3, NYUv2 has 2" in found
    assert "1 depth maps of nyu_test.txt are empty files: kitchen/test_1.png" in found
    assert "1 depth maps of nyu_test.txt are not there: kitchen/x.png" in found
    (root / "nyu_test.txt").unlink()
    assert "nyu_test.txt, the list of val pictures" in told(depth_layout(root))


def test_depth_of_ones_own_is_png_or_npy(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "rgb" / split / "a.png")
        (tmp_path / "depth" / split).mkdir(parents=True)
        np.save(tmp_path / "depth" / split / "a.npy", np.ones((4, 4)))
    assert depth_layout(tmp_path).result()["complete"]


def pair(root: Path, name: str, category: str, *, pictures: bool = True) -> None:
    (root / "PairAnnotation/test").mkdir(parents=True, exist_ok=True)
    content = {"category": category, "src_imname": f"{name}1.jpg", "trg_imname": f"{name}2.jpg", "src_kps": [[1, 1]], "trg_kps": [[2, 2]],
               "trg_bndbox": [0, 0, 3, 3]}  # fmt: skip
    (root / "PairAnnotation/test" / f"{name}.json").write_text(json.dumps(content))
    for number in (1, 2) if pictures else ():
        picture(root / "JPEGImages" / category / f"{name}{number}.jpg")


def test_spair_is_held_against_its_pairs_categories_and_pictures(tmp_path: Path) -> None:
    pair(tmp_path, "a", "cat")
    pair(tmp_path, "b", "dog", pictures=False)
    (tmp_path / "PairAnnotation/test/c.json").write_text("{}")
    report = correspondence_layout(tmp_path, "test")
    found = told(report)
    assert report.dataset == "SPair-71k"
    assert "test pairs: 3, SPair-71k has 12,234" in found
    assert "categories: 2, SPair-71k has 18" in found
    assert "1 annotations cannot be read: c.json" in found
    assert "2 pictures that pairs name are not there" in found
    assert "PairAnnotation/trn" in told(correspondence_layout(tmp_path, "trn"))
    assert len(correspondence_layout(tmp_path / "no", "test").findings) >= 3


def test_pairs_of_other_categories_have_no_official_count(tmp_path: Path) -> None:
    pair(tmp_path, "a", "gear")
    report = correspondence_layout(tmp_path, "test")
    assert report.result()["complete"]
    assert report.found == {"test pairs": 1, "categories": 1, "pictures of the pairs": 2}


def test_labelled_folders_tell_loose_pictures_empty_classes_and_imagenets_counts(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"class{number}" / "deeper" / "a.jpg")
    report = LayoutReport("labelled pictures", "")
    assert class_folders(report, tmp_path, "train") == {"class0", "class1", "class2"}
    assert report.findings == []
    picture(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "class9").mkdir()
    class_folders(report, tmp_path, "test")
    assert "1 pictures of test lie in no class's folder: ILSVRC2012_val_00000001.JPEG" in told(report)
    assert "1 classes of test hold no picture: class9" in told(report)
    for number in range(501):
        (tmp_path / "imagenet" / f"n{number:08d}").mkdir(parents=True)
        (tmp_path / "imagenet" / f"n{number:08d}" / "a.JPEG").write_bytes(b"x")
    report = LayoutReport("labelled pictures", "")
    class_folders(report, tmp_path / "imagenet", "test")
    assert "test classes: 501, ImageNet-1k has 1,000" in told(report)
    assert "test pictures: 501, ImageNet-1k has 50,000" in told(report)


def coco(root: Path, split: str, pictures: int) -> Path:
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 4, "width": 4} for number in range(pictures)]
    boxes = [{"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 2, 2]} for number in range(pictures)]
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "gear"}]}))
    for one in images:
        picture(root / split / str(one["file_name"]))
    return file


def test_coco_tells_what_both_splits_lack(tmp_path: Path) -> None:
    coco(tmp_path, "train", 3)
    coco(tmp_path, "val", 3)
    assert coco_layout(tmp_path).result()["complete"]
    (tmp_path / "train/1.jpg").unlink()
    (tmp_path / "train/2.jpg").unlink()
    (tmp_path / "annotations/instances_val.json").write_text("{}")
    found = told(coco_layout(tmp_path))
    assert "2 pictures of instances_train.json are not there: 1.jpg, 2.jpg" in found
    assert "instances_val.json is not COCO's" in found


def test_the_published_coco_is_held_against_its_counts(tmp_path: Path) -> None:
    coco(tmp_path, "train2017", 3)
    coco(tmp_path, "val2017", 2)
    assert "train_pictures: 3, COCO's layout has 118,287" in told(coco_layout(tmp_path))
