"""The evaluate commands from the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation import linear
from eupe_pipeline.jobs.evaluation.knn import KnnOptions
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from PIL import Image

from ...teachers.tiny_clip import write_clip

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_store.store.url.removeprefix("file://"), tmp_path / "store")
    shutil.copytree(tiny_store.teacher_run, tmp_path / "run")
    return tmp_path


def told(capture: Capture, *words: object) -> dict[str, Any]:
    capture.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def test_neighbours_and_probe_take_datasets_or_a_folder_of_both(
    folder: Path, tiny_store: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("--store", folder / "store", "--train", "photos", "--test", "photos", "--allow-overlap")
    assert told(capsys, "knn", folder / "run", *sets)["train_images"] == 24
    cached = told(capsys, "knn", "tiny-teacher", *sets, "--test-images", 5, "--out", folder / "out")
    assert (cached["test_images"], Path(cached["record"]).parent.parent) == (5, folder / "out")
    for split in ("train", "val"):
        shutil.copytree(tiny_store.teacher_run.parent / "images", folder / "data" / split)
    sweep = linear.evaluate_linear  # which has tests of its own
    monkeypatch.setattr(linear, "evaluate_linear", lambda options, on_event: sweep(replace(options, powers=(-2.0, 0.0)), on_event))
    result = told(capsys, "linear", folder / "run", "--data", folder / "data", "--allow-overlap")
    assert result["classes"] == 3
    assert (folder / "home" / "evaluations" / "store" / "eupe-store.json").is_file()
    with pytest.raises(BadInput, match="and not both"):
        KnnOptions(model="m", data="x", train_set="a", test_set="b").datasets()


def test_dense_evaluations_run_a_real_student(folder: Path, capsys: Capture) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("images", "masks", "depth"):
            (folder / "dense" / name / split).mkdir(parents=True)
        for number in range(2):
            classes = generator.integers(0, 2, (5, 6)).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray((classes[..., None] * 200 + np.zeros(3)).astype(np.uint8)).save(
                folder / "dense" / "images" / split / f"{number}.png"
            )
            Image.fromarray(classes.astype(np.uint8)).save(folder / "dense" / "masks" / split / f"{number}.png")
            Image.fromarray((classes * 2000 + 1000).astype(np.uint16)).save(folder / "dense" / "depth" / split / f"{number}.png")
    common = (folder / "run", "--data", folder / "dense", "--steps", 3, "--batch-size", 2, "--size", 32, "--device", "cpu")
    assert 0 <= told(capsys, "segmentation", *common)["miou"] <= 100
    assert told(capsys, "depth", *common)["rmse"] > 0
    assert sorted(path.name.split("-")[0] for path in (folder / "run" / "evaluations").glob("*.json")) == ["depth", "segmentation"]
    assert told(capsys, "segmentation", *common)["already"]
    for path in (folder / "dense" / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    binary = told(capsys, "segmentation", *common, "--ignore-index", "none", "--protocol", "ours")
    assert [value is not None for value in (binary["iou_by_class"][0], binary["iou_by_class"][255])] == [True, True]
    assert main(["evaluate", "segmentation", *map(str, common)]) == 2
    assert "if the ignored value is a class, say --ignore-index none" in capsys.readouterr().err
    assert main(["evaluate", "segmentation", *map(str, common), "--ignore-index", "nothing"]) == 2
    assert "neither a whole number nor the word none" in capsys.readouterr().err


def test_zero_shot_says_what_it_would_do(folder: Path, capsys: Capture) -> None:
    write_clip(folder / "clip")
    words = ("zero-shot", f"hf:{folder / 'clip'}", "--store", folder / "store", "--data", "photos", "--text", folder / "clip")
    assert told(capsys, *words, "--dry-run")["protocol"]["classes"] == 3
    assert told(capsys, *words)["top5"] == 100.0


@pytest.mark.parametrize(("words", "why"), [
    (["segmentation", "nowhere/run", "--data", "."], "holds no model/model.json"),
    (["depth", "tiny-teacher@0123", "--data", "."], "is a feature set"),
    (["correspondence", "keras-resnet50", "--data", "."], "weights of teacher keras-resnet50 are missing"),
    (["knn", "x", "--train", "a"], "give --train and --test"),
    (["zero-shot", "tiny-teacher", "--store", "{folder}/store", "--data", "photos", "--text", "{folder}"], "holds neither"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_said_with_status_2(folder: Path, words: list[str], why: str, capsys: Capture) -> None:
    assert main(["evaluate", *(word.replace("{folder}", str(folder)) for word in words)]) == 2
    assert why in capsys.readouterr().err
