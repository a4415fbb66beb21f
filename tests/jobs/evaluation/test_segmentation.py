"""Segmentation over rendered pictures whose right answer is known: colours are classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.segmentation import SegmentationOptions, evaluate_segmentation
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.dense_head import ADE20K_RECIPE
from eupe_pipeline.student.probes.evaluation_records import list_records
from eupe_pipeline.student.probes.segmentation import SegmentationView
from PIL import Image

from ..oracle import ColourEncoder, oracle_model

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [190, 190, 30]], np.uint8)
VIEW = SegmentationView(64, 40, scale=(1.0, 1.0), distort=False)
HEAD = replace(ADE20K_RECIPE, batch_size=4, learning_rate=0.05)
OPTIONS = SegmentationOptions(model="oracle", data=Path(), view=VIEW, head=HEAD, steps=120, evaluate_every=60, device="cpu")


def draw_pictures(root: Path, count: int, split: str, *, shift: int = 0) -> None:
    """Squares of 16 px, each of one of four colours with a little noise; the mask says which, `shift` more."""
    generator = np.random.default_rng(len(split) * 100 + count)
    for number in range(count):
        classes = generator.integers(0, 4, (4, 6)).repeat(16, axis=0).repeat(16, axis=1)
        noisy = COLOURS[classes] + generator.normal(0, 5, (*classes.shape, 3))
        for folder, values in (("images", np.clip(noisy, 0, 255)), ("annotations", classes + shift)):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(root / folder / split / f"{number}.png")


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", ColourEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.segmentation.open_dense_model", lambda options: model)
    return tmp_path


def test_what_is_linear_in_the_tokens_is_segmented_nearly_perfectly(oracle: Path) -> None:
    draw_pictures(oracle / "data", 8, "training")
    draw_pictures(oracle / "data", 3, "validation")
    result = evaluate_segmentation(replace(OPTIONS, data=oracle / "data"))
    assert result["miou"] > 95
    assert result["pixel_accuracy"] > 95
    assert (len(result["iou_by_class"]), list(result["by_step"])) == (4, ["60", "120"])
    assert result["best_miou"] == max(one["miou"] for one in result["by_step"].values())
    (record,) = list_records(oracle / "model")
    assert record["protocol"]["classes"] == 4
    assert record["protocol"]["data"]["val"]["pictures"] == 3
    assert record["protocol"]["head"]["clip_norm"] == "inf"
    assert sorted(path.name.partition(".")[2] for path in (oracle / "model" / "evaluations").iterdir()) == ["head.safetensors", "json"]


def test_class_zero_is_ignored_where_it_means_nothing(oracle: Path) -> None:
    draw_pictures(oracle / "data", 6, "train", shift=1)
    draw_pictures(oracle / "data", 2, "val", shift=1)
    mask = oracle / "data" / "annotations" / "val" / "0.png"
    values = np.asarray(Image.open(mask)).copy()
    values[:32] = 0
    Image.fromarray(values).save(mask)
    result = evaluate_segmentation(replace(OPTIONS, data=oracle / "data", zero_is_ignored=True))
    assert result["miou"] > 95


def test_a_stopped_evaluation_goes_on_to_the_same_numbers(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eupe_pipeline.student.probes.head_training.KEEP_EVERY", 10)
    draw_pictures(oracle / "data", 4, "train")
    draw_pictures(oracle / "data", 1, "val")
    options = replace(OPTIONS, steps=60, evaluate_every=20)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["stage"] == "head" and event["done"] == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_segmentation(replace(options, data=oracle / "data"), stop)
    first: list[int] = []
    stopped = evaluate_segmentation(
        replace(options, data=oracle / "data"), lambda event: first.append(event["done"]) if event.get("stage") == "head" else None
    )
    assert first[0] == 60
    next((oracle / "model" / "evaluations").glob("*.json")).unlink()
    whole = evaluate_segmentation(replace(options, data=oracle / "data"))
    assert {**stopped, "seconds": 0} == {**whole, "seconds": 0}


def test_a_dry_run_says_the_protocol_and_trains_nothing(oracle: Path) -> None:
    draw_pictures(oracle / "data", 2, "train")
    draw_pictures(oracle / "data", 1, "val")
    plan = evaluate_segmentation(SegmentationOptions(model="oracle", data=oracle / "data", dry_run=True))
    assert plan["protocol"]["head"]["steps"] == 40_000
    assert plan["protocol"]["view"]["stride_px"] == 341
    assert not (oracle / "model").exists()


def test_an_oblong_window_is_refused_with_the_reason(oracle: Path) -> None:
    with pytest.raises(BadInput, match=r"windows are square by the official protocol and by ours, takes .* got 32x48 px; give --size SIDE"):
        evaluate_segmentation(replace(OPTIONS, data=oracle / "data", size_px=(32, 48)))


def test_masks_of_another_size_and_unknown_classes_are_refused_by_name(oracle: Path) -> None:
    draw_pictures(oracle / "data", 2, "train")
    draw_pictures(oracle / "data", 1, "val", shift=40)
    with pytest.raises(BadInput, match="holds class 43, and there are 4"):
        evaluate_segmentation(replace(OPTIONS, data=oracle / "data", steps=2))
    with pytest.raises(BadInput, match=r"holds class 3, and there are 3; say --classes"):
        evaluate_segmentation(replace(OPTIONS, data=oracle / "data", steps=2, classes=3))
    draw_pictures(oracle / "data", 1, "val")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(oracle / "data" / "annotations" / "train" / "0.png")
    with pytest.raises(BadInput, match="both must be of one size"):
        evaluate_segmentation(replace(OPTIONS, data=oracle / "data", steps=3))


def test_cached_tokens_are_refused_because_the_crops_are_others(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a feature set"):
        evaluate_segmentation(replace(OPTIONS, model="teacher@0123456789ab", data=tmp_path))
