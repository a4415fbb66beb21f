"""Labels and splits of which a figure would mean nothing: refused or said, and the figure right where there is one (FAULTS 33)."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize
from eupe_pipeline.jobs.evaluation.segmentation import evaluate_segmentation
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.evaluation_records import list_records, write_record
from PIL import Image

from ...fault_log import Trials
from ..evaluation_request import evaluate_knn, evaluate_linear
from ..oracle import ColourEncoder, oracle_model
from .test_mask_checks import draw
from .test_overlap import Sets, as_tar, fresh, sets, with_copies
from .test_segmentation import OPTIONS

__all__ = ["sets"]
pytestmark = pytest.mark.fault
DRY = replace(OPTIONS, dry_run=True)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", ColourEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.segmentation.open_dense_model", lambda options: model)
    return tmp_path


def test_mask_values_on_the_sentinel(oracle: Path) -> None:
    """Each of four pairs of values under each of five ignored values: both are classes, or what is left is refused."""
    with Trials(33) as trials:
        for background, foreground in ((0, 255), (0, 1), (255, 1), (254, 255)):
            data = draw(oracle / f"{background}-{foreground}", {0: background, 1: background, 2: foreground, 3: foreground})
            for ignore in (255, 0, 1, 77, None):
                if ignore in (background, foreground):
                    with pytest.raises(BadInput, match="one class only"):
                        evaluate_segmentation(replace(DRY, data=data, ignore=ignore))
                    trials.note("detected")
                else:
                    plan = evaluate_segmentation(replace(DRY, data=data, ignore=ignore))
                    assert (plan["protocol"]["classes"], plan["protocol"]["ignore"]) == (max(background, foreground) + 1, ignore)
                    trials.note("right")


def test_splits_without_labels(oracle: Path) -> None:
    with Trials(33) as trials:
        for split in ("train", "val"):
            for value, ignore in ((255, 255), (0, 0), (9, 9)):
                data = draw(oracle / f"{split}-{value}", {0: 1, 1: 2, 2: 3, 3: 4})
                for path in (data / "annotations" / split).iterdir():
                    Image.fromarray(np.full(np.asarray(Image.open(path)).shape, value, np.uint8)).save(path)
                with pytest.raises(BadInput, match="no pixel of the"):
                    evaluate_segmentation(replace(DRY, data=data, ignore=ignore))
                trials.note("detected")


def test_a_figure_that_is_no_number_is_never_kept(tmp_path: Path) -> None:
    with Trials(33) as trials:
        for value in (float("nan"), float("inf"), float("-inf")):
            with pytest.raises(BadInput, match=r"segmentation: by_class\.1\.iou is not a number"):
                write_record(tmp_path, "segmentation", {"k": 1}, {"miou": 1.0, "by_class": [{"iou": 2.0}, {"iou": value}]}, 1.0)
            assert not list(tmp_path.rglob("*.json"))
            trials.note("detected")


@pytest.mark.parametrize("evaluate", [evaluate_knn, partial(evaluate_linear, powers=(0.0,))])
def test_one_class_and_test_pictures_in_the_training_set(sets: Sets, evaluate: Callable[..., dict[str, Any]]) -> None:
    """Under other file names, in another folder, in a tar, as a dataset's name; some copies, or all."""
    with Trials(33) as trials:
        folder, mixed = fresh(sets.root / "mine", 12), with_copies(sets, 12, 4)
        tar, again = as_tar(folder, sets.root / "mine.tar"), as_tar(folder, sets.root / "again.tar")
        one = fresh(sets.root / "one", 12, classes=1)
        pairs = (("photos", str(mixed)), ("photos", "photos"), (str(folder), str(folder)), (str(tar), str(again)), (str(mixed), "photos"))
        for train, test in (*pairs, (str(one), str(one))):
            with pytest.raises(BadInput, match=r"are also learnt from|one class only"):
                evaluate(str(sets.run), sets.store, train, test)
            assert list_records(sets.run) == []
            trials.note("detected")
        result = evaluate(str(sets.run), sets.store, "photos", str(mixed), size=EvaluationSize(allow_overlap=True))
        assert result["test_images_in_train"] == 4
        json.dumps(result, allow_nan=False)
        trials.note("right")
