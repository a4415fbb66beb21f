"""Zero-shot through a small random CLIP: transformers' own logits say what is right, adapters are followed by hand."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.knn import embed_images
from eupe_pipeline.jobs.evaluation.labelled_features import WHOLE, center_batches
from eupe_pipeline.jobs.evaluation.zero_shot import ZeroShotOptions
from eupe_pipeline.jobs.evaluation.zero_shot import evaluate_zero_shot as run_zero_shot
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.probes.evaluation_records import list_records
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.text_tower import load_text_tower
from torch.nn import functional

from ...student.export.test_adapter_chain import run_of
from ...teachers.tiny_clip import write_clip, write_siglip
from ..evaluation_request import evaluate_zero_shot

TEXTS = """
templates = ["a photo of a {}.", "a drawing of a {}."]
[classes]
class0 = "red thing"
class1 = ["blue thing", "blue"]
class2 = "green"
"""


@pytest.fixture
def store(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_store.store.url.removeprefix("file://"), tmp_path / "store")
    (tmp_path / "texts.toml").write_text(TEXTS)
    return FeatureStore.open(str(tmp_path / "store"))


def class_vectors(embed: Any) -> torch.Tensor:
    names = [["red thing"], ["blue thing", "blue"], ["green"]]
    texts = [
        [template.replace("{}", name) for name in several for template in ("a photo of a {}.", "a drawing of a {}.")] for several in names
    ]
    return functional.normalize(torch.stack([functional.normalize(embed(one), dim=1).mean(dim=0) for one in texts]), dim=1)


def test_a_clip_model_classifies_as_transformers_does(store: FeatureStore, tmp_path: Path) -> None:
    model, folder = write_clip(tmp_path / "clip"), tmp_path / "clip"
    result = evaluate_zero_shot(f"hf:{folder}", store, "photos", folder, tmp_path / "texts.toml")
    dataset, teacher = store.dataset("photos"), load_teacher(resolve_teacher(f"hf:{folder}"))
    pixels = torch.from_numpy(next(center_batches(dataset, np.arange(24), teacher, WHOLE)))
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=(pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).pooler_output
        images = functional.normalize(model.visual_projection(pooled), dim=1)
        logits = images @ class_vectors(load_text_tower(folder).embed).t()
    right = float((logits.argmax(dim=1).numpy() == dataset.labels()).mean())
    assert result["top1"] == pytest.approx(100 * right)
    assert (result["top5"], result["test_images"], result["classes"]) == (100.0, 24, 3)
    assert str(folder) in result["warnings"][0]
    assert "33.3 %" in result["warnings"][0]


def test_a_siglip_model_classifies_by_the_librarys_own_logits(store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    model, texts = write_siglip(folder), ["a photo of a red thing", "a photo of a blue", "a photo of a green"]  # without full stops
    (tmp_path / "one.toml").write_text(
        'templates = ["a photo of a {}."]\n[classes]\nclass0 = "red thing"\nclass1 = "blue"\nclass2 = "green"\n'
    )
    result = evaluate_zero_shot(f"hf:{folder}", store, "photos", folder, tmp_path / "one.toml")
    dataset, teacher = store.dataset("photos"), load_teacher(resolve_teacher(f"hf:{folder}"))
    pixels = torch.from_numpy(next(center_batches(dataset, np.arange(24), teacher, WHOLE)))
    with torch.no_grad():
        logits = model(
            input_ids=load_text_tower(folder).tokenize(texts), pixel_values=(pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        ).logits_per_image
    assert result["top1"] == pytest.approx(100 * float((logits.argmax(dim=1).numpy() == dataset.labels()).mean()))
    assert result["classes"] == 3


def test_a_student_goes_through_its_adapters_and_statistics(tiny_store: Any, store: FeatureStore, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", vision_width=48)
    run, student = run_of(tmp_path / "run", tiny_store, 48, 1)
    texts = (tmp_path / "clip", tmp_path / "texts.toml")
    result = evaluate_zero_shot(str(run), store, "photos", *texts)
    dataset, tower = store.dataset("photos"), load_text_tower(tmp_path / "clip")
    cls_ND = embed_images(load_teacher(resolve_teacher(str(run))), dataset, np.arange(24), WHOLE).cls_ND
    assert cls_ND is not None
    with torch.no_grad():
        adapted = student.adapters[0](Tokens(torch.from_numpy(cls_ND), torch.zeros(24, 1, 1, 48))).cls_BD.numpy()
    space = torch.from_numpy(tiny_store.features().statistics.denormalize_cls(adapted))
    assert tower.image_projection is not None
    logits = functional.normalize(space @ tower.image_projection.t(), dim=1) @ class_vectors(tower.embed).t()
    assert result["top1"] == pytest.approx(100 * float((logits.argmax(dim=1).numpy() == dataset.labels()).mean()))
    (record,) = list_records(run)
    assert record["protocol"]["teacher"] == "tiny-teacher"
    assert set(record["protocol"]["way"]) == {"adapters.safetensors", "chain.json"}


def test_an_export_with_adapters_classifies_as_its_run(tiny_store: Any, store: FeatureStore, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", vision_width=48)
    run, _ = run_of(tmp_path / "run", tiny_store, 48, 1)
    export(ExportOptions(run, tmp_path / "out", ("timm",), adapters=True, store=tiny_store.store.url))
    texts = (tmp_path / "clip", tmp_path / "texts.toml")
    one, other = (evaluate_zero_shot(str(model), store, "photos", *texts) for model in (run, tmp_path / "out" / "timm"))
    assert one["top1"] == other["top1"]


def test_what_does_not_belong_together_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    with pytest.raises(BadInput, match="not of one model"):
        evaluate_zero_shot("tiny-teacher", store, "photos", tmp_path / "clip", tmp_path / "texts.toml")
    with pytest.raises(BadInput, match="no adapters that could lead to pecore-g"):
        evaluate_zero_shot(f"hf:{tmp_path / 'clip'}", store, "photos", tmp_path / "clip", teacher="pecore-g")
    (tmp_path / "texts.toml").write_text('[classes]\nclass0 = "red"\n')
    with pytest.raises(BadInput, match="none for the dataset's label 'class1'"):
        evaluate_zero_shot("tiny-teacher", store, "photos", tmp_path / "clip", tmp_path / "texts.toml")


def test_the_papers_protocol_is_the_bare_names_and_is_recorded_under_its_name(store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    model, names = write_siglip(folder), ["red thing", "blue", "green"]
    (tmp_path / "names.toml").write_text('[classes]\nclass0 = "red thing"\nclass1 = "blue"\nclass2 = "green"\n')
    options = ZeroShotOptions(
        model=f"hf:{folder}", store=store.url, data="photos", text=folder, classes=tmp_path / "names.toml", templates="names",
        out=tmp_path / "out",
    )  # fmt: skip
    result = run_zero_shot(options)
    dataset, teacher = store.dataset("photos"), load_teacher(resolve_teacher(f"hf:{folder}"))
    pixels = torch.from_numpy(next(center_batches(dataset, np.arange(24), teacher, WHOLE)))
    with torch.no_grad():
        logits = model(
            input_ids=load_text_tower(folder).tokenize(names), pixel_values=(pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        ).logits_per_image
    assert result["top1"] == pytest.approx(100 * float((logits.argmax(dim=1).numpy() == dataset.labels()).mean()))
    assert result["differs_from_paper"] == ["the input is 16 px, the paper's 224; --size 224 measures as it does"]
    sentence = run_zero_shot(replace(options, templates="photo"))
    first, second = list_records(tmp_path / "out")
    assert {first["protocol"].get("name"), second["protocol"].get("name")} == {"paper", None}
    assert "differs_from_paper" not in sentence
