"""Masks whose values cannot give a figure are refused by name before the first step; what is ignored is what the user says."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.segmentation import evaluate_segmentation
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.sources.decode import BadImage
from PIL import Image

from ..oracle import ColourEncoder, oracle_model
from .test_segmentation import OPTIONS, draw_pictures

SHORT = replace(OPTIONS, steps=60, evaluate_every=60)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", ColourEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.segmentation.open_dense_model", lambda options: model)
    return tmp_path


def draw(root: Path, values: dict[int, int], ending: str = "png", dtype: Any = np.uint8) -> Path:
    """Pictures of four colours, of which each class is stored as `values` says."""
    draw_pictures(root, 5, "train")
    draw_pictures(root, 2, "val")
    for path in sorted((root / "annotations").rglob("*.png")):
        classes = np.asarray(Image.open(path))
        stored = np.zeros(classes.shape, dtype)
        for value, stored_value in values.items():
            stored[classes == value] = stored_value
        path.unlink()
        Image.fromarray(stored).save(path.with_suffix(f".{ending}"))
    return root


@pytest.mark.parametrize(("ignore", "foreground", "classes"), [(None, 255, 256), (7, 9, 10), (255, 1, 2), (0, 9, 10)])
def test_a_foreground_is_trained_and_measured_unless_the_user_ignores_its_value(
    oracle: Path, ignore: int | None, foreground: int, classes: int
) -> None:
    background = 3 if ignore == 0 else 0
    data = draw(oracle / "data", {0: background, 1: background, 2: foreground, 3: foreground})
    options = replace(SHORT, steps=60, batch_size=2)
    result = evaluate_segmentation(replace(options, data=data, ignore=ignore))
    assert len(result["iou_by_class"]) == classes
    assert result["iou_by_class"][foreground] > 80
    assert result["iou_by_class"][background] > 80
    assert result["miou"] > 80


def test_masks_of_0_and_255_with_255_ignored_leave_one_class_and_are_refused_with_the_option(oracle: Path) -> None:
    data = draw(oracle / "data", {0: 0, 1: 0, 2: 255, 3: 255})
    with pytest.raises(BadInput, match=r"one class only, 0 \(their values: 0, 255; ignored: 255\).*--ignore-index none"):
        evaluate_segmentation(replace(SHORT, data=data))
    assert not (oracle / "model").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_labels_is_refused_before_the_first_step(oracle: Path, split: str, events: Any) -> None:
    seen, on_event = events
    data = draw(oracle / "data", {0: 0, 1: 1, 2: 2, 3: 3})
    for path in (data / "annotations" / split).iterdir():
        Image.fromarray(np.full(np.asarray(Image.open(path)).shape, 255, np.uint8)).save(path)
    word = "training" if split == "train" else "validation"
    with pytest.raises(BadInput, match=f"no pixel of the {word} masks counts: they hold 255, all of it ignored"):
        evaluate_segmentation(replace(SHORT, data=data), on_event)
    assert seen == []


@pytest.mark.parametrize(("ending", "dtype", "stray"), [("png", np.uint8, 200), ("png", np.uint16, 60_000), ("tif", np.uint16, 400)])
def test_a_value_that_is_no_class_is_refused_with_its_file(oracle: Path, ending: str, dtype: Any, stray: int) -> None:
    data = draw(oracle / "data", {0: 0, 1: 1, 2: 2, 3: 3}, ending, dtype)
    path = data / "annotations" / "val" / f"1.{ending}"
    values = np.asarray(Image.open(path)).astype(dtype)
    values[0, 0] = stray
    Image.fromarray(values).save(path)
    with pytest.raises(BadInput, match=rf"val/1\.{ending} holds class {stray}, and there are 4"):
        evaluate_segmentation(replace(SHORT, data=data))
    assert evaluate_segmentation(replace(SHORT, data=data, dry_run=True, ignore=stray))["protocol"]["classes"] == 4


def test_more_classes_than_can_be_counted_and_fractions_are_refused(oracle: Path) -> None:
    data = draw(oracle / "data", {0: 0, 1: 1, 2: 2, 3: 50_000}, "png", np.uint16)
    with pytest.raises(BadInput, match="at most 4096 classes are measured"):
        evaluate_segmentation(replace(SHORT, data=data))
    shutil.rmtree(data)
    draw(data, {0: 0, 1: 1, 2: 2, 3: 3}, "tif", np.float32)
    with pytest.raises(BadImage, match=r"train/0\.tif: a floating-point number a pixel"):
        evaluate_segmentation(replace(SHORT, data=data))


def planned(root: Path, seen: list[dict[str, Any]] | None = None, **own: Any) -> tuple[int, bool]:
    told = [] if seen is None else seen
    plan = evaluate_segmentation(replace(SHORT, data=root, dry_run=True, **own), told.append)
    return plan["protocol"]["classes"], plan["protocol"]["zero_is_ignored"]


def test_the_same_bytes_under_two_names_have_the_same_classes(oracle: Path, events: Any) -> None:
    seen, _ = events
    values = {0: 0, 1: 1, 2: 149, 3: 150}
    one, other = (draw(oracle / name, values) for name in ("ADEChallengeData2016", "copy"))
    assert planned(one, seen) == planned(other) == (151, False)
    assert "say --dataset ade20k" in next(event["text"] for event in seen if event["event"] == "warning")
    assert planned(one, dataset="ade20k") == planned(other, dataset="ade20k") == (150, True)
    for root in (one, other):
        (root / "objectInfo150.txt").write_text("Idx Ratio Train Val Name\n")
    assert planned(one) == planned(other) == (150, True)
    assert planned(one, dataset="other") == (151, False)
    assert planned(one, zero_is_ignored=False) == (151, False)


def test_a_part_of_ade20k_is_known_by_its_pictures_names_and_has_all_classes(oracle: Path) -> None:
    data = draw(oracle / "few", {0: 0, 1: 1, 2: 2, 3: 3})
    for folder in ("images", "annotations"):
        for split in ("train", "val"):
            for path in sorted((data / folder / split).iterdir()):
                path.rename(path.with_name(f"ADE_{split}_{int(path.stem):08d}.png"))
    assert planned(data) == (150, True)
    with pytest.raises(BadInput, match="unknown segmentation dataset 'ade'"):
        planned(data, dataset="ade")


def test_classes_that_only_the_validation_masks_hold_are_said(oracle: Path, events: Any) -> None:
    seen, on_event = events
    data = draw(oracle / "data", {0: 0, 1: 1, 2: 2, 3: 3})
    for path in (data / "annotations" / "train").iterdir():
        values = np.asarray(Image.open(path)).copy()
        values[values == 2] = 255
        Image.fromarray(values).save(path)
    evaluate_segmentation(replace(SHORT, data=data, steps=2), on_event)
    assert "no training mask holds the validation masks' classes 2" in [event.get("text") for event in seen]
