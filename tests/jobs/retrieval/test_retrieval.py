"""Retrieval through a small random CLIP and SigLIP: transformers' own logits and plain sorting say what is right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.labelled_features import WHOLE, center_batches
from eupe_pipeline.jobs.retrieval.retrieval import RetrievalOptions, evaluate_retrieval
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.text_tower import load_text_tower
from PIL import Image

from ...teachers.tiny_clip import write_clip, write_siglip

WORDS = ("red", "green", "blue", "thing", "drawing", "photo")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    draw = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    lines = []
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "pictures" / f"{number:02d}.png")
        texts = [" ".join(draw.choice(WORDS, 4)) for _ in range(1 + number % 3)]
        lines.append(json.dumps({"image": f"{number:02d}.png", "captions": texts}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path


def options(data: Path, tower: Path, **more: Any) -> RetrievalOptions:
    return RetrievalOptions(model=f"hf:{tower}", data=str(data / "pictures"), captions=data / "captions.jsonl", text=tower, **more)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_recalls_are_those_of_the_librarys_own_logits(write: Any, data: Path) -> None:
    tower = data / "tower"
    model = write(tower)
    result = evaluate_retrieval(options(data, tower))
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    texts = [text for row in rows for text in row["captions"]]
    image_of = [number for number, row in enumerate(rows) for _ in row["captions"]]
    store = FeatureStore.open(str(data / "home" / "evaluations" / "store"))
    dataset, teacher = store.dataset(store.list_datasets()[0]), load_teacher(resolve_teacher(f"hf:{tower}"))
    pixels = torch.from_numpy(next(center_batches(dataset, np.arange(12), teacher, WHOLE)))
    with torch.no_grad():
        logits = model(
            input_ids=load_text_tower(tower).tokenize(texts), pixel_values=(pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        ).logits_per_text.numpy()
    for k in (1, 5, 10):
        right = [image_of[number] in np.argsort(-row)[:k] for number, row in enumerate(logits)]
        assert result[f"text_to_image_r{k}"] == pytest.approx(100 * np.mean(right))
        others = [  # a caption that stands for two images counts against, which sorting leaves open
            sum(row[number] >= max(row[own] for own in range(len(texts)) if image_of[own] == place) - 1e-5
                for number in range(len(texts)) if image_of[number] != place)
            for place, row in enumerate(logits.T)
        ]  # fmt: skip
        assert result[f"image_to_text_r{k}"] == pytest.approx(100 * np.mean(np.array(others) < k))
    assert (result["images"], result["texts"]) == (12, len(texts))
    guesses = result["text_to_image_r1"] / 100 <= 1 / 12 + 3 * (11 / 144 / len(texts)) ** 0.5  # random weights do
    assert ["8.3 %" in text for text in result.get("warnings", [])] == [True] * guesses
    assert evaluate_retrieval(options(data, tower))["already"]


def test_images_without_captions_take_no_part_and_captions_without_images_are_refused(data: Path, events: Any) -> None:
    told, on_event = events
    write_clip(data / "tower")
    lines = (data / "captions.jsonl").read_text().splitlines()
    whole = evaluate_retrieval(options(data, data / "tower"))
    (data / "captions.jsonl").write_text("\n".join(lines[:4]))
    some = evaluate_retrieval(options(data, data / "tower"), on_event)
    assert some["images"] == 4
    assert some["text_to_image_r5"] == 100.0 > whole["text_to_image_r5"]
    assert any("8 images of" in str(event.get("text")) for event in told)
    (data / "captions.jsonl").write_text("\n".join([*lines, '{"image": "zz.png", "caption": "red"}']))
    with pytest.raises(BadInput, match=r"captions of 1 images that .* does not hold \(zz\.png\)"):
        evaluate_retrieval(options(data, data / "tower"))
    (data / "captions.jsonl").write_text(lines[0])
    with pytest.raises(BadInput, match="nothing to confuse it with"):
        evaluate_retrieval(options(data, data / "tower"))


def test_the_command_checks_and_plans(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(data / "tower")
    words = ["evaluate", "retrieval", f"hf:{data / 'tower'}", "--data", str(data / "pictures"), "--captions", str(data / "captions.jsonl")]
    words += ["--text", str(data / "tower"), "--json"]
    assert main([*words, "--check"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["found"] == {"images with captions": 12, "captions": 24}
    (data / "pictures/03.png").unlink()
    assert main([*words, "--check"]) == 2
    assert "1 images with captions are not there: 03.png" in capsys.readouterr().out
    (data / "pictures/03.png").write_bytes((data / "pictures/04.png").read_bytes())
    assert main([*words, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["protocol"]["texts"] == 24
