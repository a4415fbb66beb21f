"""`evaluate … --check` tells what data lack with status 2, looks at no model and writes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.commands.main import main
from PIL import Image

CAPTURE = pytest.CaptureFixture[str]


def photos(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(root / name)


def checked(capsys: CAPTURE, *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["evaluate", *words, "--check", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    return status, told


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("evaluation", ["knn", "linear"])
def test_classes_of_both_splits_are_compared_and_no_store_is_made(evaluation: str, tmp_path: Path, home: Path, capsys: CAPTURE) -> None:
    photos(tmp_path / "data", "train/cat/a.png", "train/dog/a.png", "val/cat/b.png", "val/dog/b.png")
    status, told = checked(capsys, evaluation, "no-such-model", "--data", str(tmp_path / "data"))
    assert (status, told["complete"], told["found"]["train pictures"]) == (0, True, 2)
    photos(tmp_path / "data", "val/fox/b.png", "val/loose.png")
    status, told = checked(capsys, evaluation, "no-such-model", "--data", str(tmp_path / "data"))
    assert status == 2
    assert [finding["missing"] for finding in told["findings"]] == [
        "1 pictures of test lie in no class's folder: loose.png", "1 classes are tested and have no folder of training pictures: fox",
    ]  # fmt: skip
    assert all(finding["do"] for finding in told["findings"])
    assert not home.exists()


def test_both_missing_splits_are_told(tmp_path: Path, capsys: CAPTURE) -> None:
    status, told = checked(capsys, "knn", "m", "--data", str(tmp_path))
    assert (status, len(told["findings"])) == (2, 2)
    status, told = checked(capsys, "knn", "m", "--train", "photos", "--test", "photos", "--store", str(tmp_path / "none"))
    assert (status, len(told["findings"])) == (2, 2)


@pytest.mark.parametrize(("evaluation", "says"), [
    ("segmentation", "no folder images or rgb"), ("depth", "nyu_train.txt"), ("correspondence", "PairAnnotation"),
    ("detection", "instances_train"),
])  # fmt: skip
def test_an_empty_folder_is_no_dataset(evaluation: str, says: str, tmp_path: Path, home: Path, capsys: CAPTURE) -> None:
    (tmp_path / "empty").mkdir()
    status, told = checked(capsys, evaluation, "no-such-model", "--data", str(tmp_path / "empty"))
    assert status == 2
    assert told["complete"] is False
    assert any(says in finding["missing"] for finding in told["findings"])
    assert not home.exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_is_whole_has_status_0_and_readable_text(tmp_path: Path, capsys: CAPTURE) -> None:
    photos(tmp_path, *(f"{folder}/{split}/a.png" for folder in ("images", "masks") for split in ("train", "val")))
    assert main(["evaluate", "segmentation", "m", "--data", str(tmp_path), "--check"]) == 0
    assert "complete: yes" in capsys.readouterr().out.lower().replace("true", "yes")


def test_zero_shot_tells_data_names_and_tower(tmp_path: Path, capsys: CAPTURE) -> None:
    photos(tmp_path / "data", "cat/a.png", "dog/a.png")
    (tmp_path / "names.toml").write_text('[classes]\ncat = "cat"\n')
    (tmp_path / "tower").mkdir()
    words = ["--data", str(tmp_path / "data"), "--text", str(tmp_path / "tower"), "--classes", str(tmp_path / "names.toml")]
    status, told = checked(capsys, "zero-shot", "m", *words)
    missing = [finding["missing"] for finding in told["findings"]]
    assert status == 2
    assert missing[0] == "1 labels have no name: dog"
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "n02123045")
    _, told_of_ids = checked(capsys, "zero-shot", "m", *words[:-2])
    assert told_of_ids["findings"][0]["missing"].startswith("1 labels are ids and no words (n02123045): give their names")
    assert [line.partition(" has no ")[2] for line in missing[1:]] == [
        "open_clip_config.json or config.json",
        "*.safetensors",
        "tokenizer.json",
    ]
