"""Labels that cannot give a figure are refused before anything is computed; what makes a figure easy to misread is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.student.probes.evaluation_records import list_records

from ...teachers.tiny_clip import write_clip
from ..evaluation_request import evaluate_knn, evaluate_linear, evaluate_zero_shot
from .test_overlap import Sets, fresh, sets, watched

__all__ = ["sets"]


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear])
def test_a_dataset_of_one_class_is_refused(sets: Sets, evaluate: Any) -> None:
    one, other = fresh(sets.root / "one", 15, seed=2, classes=1), fresh(sets.root / "other", 15, seed=3, classes=1)
    before = sets.store.list_features()
    with pytest.raises(BadInput, match=r"one@\w+ holds one class only \('class0'\), so every answer is right"):
        evaluate(str(sets.run), sets.store, str(one), str(other))
    assert (sets.store.list_features(), list_records(sets.run)) == (before, [])


def test_a_sample_that_falls_into_one_class_is_refused_too(sets: Sets) -> None:
    with pytest.raises(BadInput, match="holds one class only"):
        evaluate_knn(str(sets.run), sets.store, "photos", str(fresh(sets.root / "new", 6)), size=EvaluationSize(train_images=1))


def test_zero_shot_among_one_class_is_refused(sets: Sets) -> None:
    write_clip(sets.root / "clip")
    one = fresh(sets.root / "one", 4, classes=1)
    with pytest.raises(BadInput, match="holds one class only"):
        evaluate_zero_shot(f"hf:{sets.root / 'clip'}", sets.store, str(one), sets.root / "clip")


def test_one_class_while_training_is_refused_before_the_first_step(sets: Sets) -> None:
    build_index(sets.store.objects, str(fresh(sets.root / "one", 24, classes=1)), "one")
    with pytest.raises(BadInput, match=r"one@\w+ holds one class only"):
        watched(sets, "run", "one")


def test_a_dataset_without_labels_is_refused_before_anything_is_computed(sets: Sets) -> None:
    flat = sets.root / "flat"
    flat.mkdir()
    for image in fresh(sets.root / "new", 6).rglob("*.png"):
        shutil.copy(image, flat)
    before = sets.store.list_features()
    with pytest.raises(BadInput, match="label"):
        evaluate_knn(str(sets.run), sets.store, str(flat), "photos")
    assert sets.store.list_features() == before


def test_classes_without_a_training_image_are_said(sets: Sets, events: Any) -> None:
    seen, on_event = events
    train = fresh(sets.root / "train", 9, seed=4)
    size = EvaluationSize(train_images=2)  # of three classes
    evaluate_knn(str(sets.run), sets.store, str(train), str(fresh(sets.root / "test", 9, seed=5)), size=size, on_event=on_event)
    said = [event["text"] for event in seen if event["event"] == "warning"]
    assert any("1 tested classes have no training image, so all of their images are classified wrong: class" in text for text in said)


def test_classes_that_the_training_set_does_not_know_are_refused_by_name(sets: Sets) -> None:
    test = fresh(sets.root / "test", 8, seed=5, classes=4)
    with pytest.raises(BadInput, match="labels that the neighbours' dataset lacks: class3"):
        evaluate_knn(str(sets.run), sets.store, "photos", str(test))


def split(sets: Sets, train_classes: int, test_classes: int) -> Path:
    """A folder with train/ and val/, each with so many classes."""
    fresh(sets.root / "data" / "train", 12, seed=4, classes=train_classes)
    fresh(sets.root / "data" / "val", 12, seed=5, classes=test_classes)
    return sets.root / "data"


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_classes_that_are_trained_and_not_tested_are_a_remark_of_the_check_and_of_the_evaluation(
    command: str, sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", command, str(sets.run), "--data", str(split(sets, 3, 2)), "--json"]
    assert main([*words, "--check"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["complete"], told["findings"]) == (True, [])
    assert told["found"]["classes that are trained and not tested"] == "1: class2"
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "1 classes are trained and not tested, so the figure says nothing of them: class2" in captured.out + captured.err


def test_classes_that_are_tested_and_not_trained_are_an_error_of_the_check_and_of_the_evaluation(
    sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "knn", str(sets.run), "--data", str(split(sets, 2, 3)), "--json"]
    assert (main([*words, "--check"]), main(words)) == (2, 2)
    captured = capsys.readouterr()
    assert "1 classes are tested and have no folder of training pictures: class2" in captured.out
    assert "labels that the neighbours' dataset lacks: class2" in captured.out + captured.err


def test_a_class_that_only_the_sample_misses_is_no_remark(sets: Sets, events: Any) -> None:
    seen, on_event = events
    test = fresh(sets.root / "test", 12, seed=5)
    evaluate_knn(str(sets.run), sets.store, "photos", str(test), size=EvaluationSize(test_images=2), on_event=on_event)
    assert not any("trained and not tested" in event.get("text", "") for event in seen)


def test_a_test_of_one_class_is_said(sets: Sets, events: Any) -> None:
    seen, on_event = events
    evaluate_knn(str(sets.run), sets.store, "photos", str(fresh(sets.root / "test", 5, classes=1)), on_event=on_event)
    assert any("are of one class, 'class0'" in event.get("text", "") for event in seen)


def test_a_k_above_the_training_set_becomes_its_size_and_is_said(sets: Sets, events: Any) -> None:
    seen, on_event = events
    train, test = fresh(sets.root / "train", 6, seed=7), fresh(sets.root / "test", 6, seed=8)
    result = evaluate_knn(str(sets.run), sets.store, str(train), str(test), on_event=on_event)
    assert list(result["cls"]["official"]) == ["6"]
    note = "k of 10, 20, 100, 200 is above the 6 training images and becomes 6, as in the official code"
    assert note in [event.get("text") for event in seen]


def test_a_run_folder_is_left_as_it_was(sets: Sets) -> None:
    before = sorted(path.name for path in Path(sets.run).iterdir())
    with pytest.raises(BadInput):
        evaluate_knn(str(sets.run), sets.store, "photos", "photos")
    assert sorted(path.name for path in Path(sets.run).iterdir()) == before
