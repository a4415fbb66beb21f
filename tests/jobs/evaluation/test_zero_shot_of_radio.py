"""RADIO goes to texts through the adaptor in its own file: small random weights, followed by hand with torch's modules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.labelled_features import WHOLE, embed_images, read_embeddings
from eupe_pipeline.jobs.evaluation.zero_shot import ZeroShotOptions, evaluate_zero_shot
from eupe_pipeline.jobs.retrieval.retrieval import RetrievalOptions, evaluate_retrieval
from eupe_pipeline.storage.core.cache_home import weights_folder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.probes.evaluation_records import list_records
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import ROWS
from eupe_pipeline.teachers.registry.text_tower import load_text_tower
from torch import Tensor
from torch.nn import functional

from ...conftest import TEACHER_PX, extract
from ...teachers.checkpoints.test_radio_adaptors import Residual
from ...teachers.published_layouts import SMALL_RADIO, WIDTH, adaptor_tensors, radio_tensors, small_row
from ...teachers.tiny_clip import write_clip, write_siglip
from .test_zero_shot import class_vectors, store

__all__ = ["store"]  # the fixture
ADAPTORS = adaptor_tensors(clip=20, siglip=24, dino_v2=32, sam=16)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ROWS, "radio-small", small_row("radio-small", SMALL_RADIO))
    save_weights({**radio_tensors(), **ADAPTORS}, tmp_path / "radio.safetensors")
    return tmp_path / "radio.safetensors"


def asked(store: FeatureStore, folder: Path, weights: Path, tower: str = "clip", **values: Any) -> ZeroShotOptions:
    """The request; `tower` is the folder of the texts, made where it is not there."""
    if not (folder / tower).exists():
        write_clip(folder / tower) if tower == "clip" else write_siglip(folder / tower)
    return ZeroShotOptions(
        model="radio-small", store=store.url, data="photos", text=folder / tower, classes=folder / "texts.toml", weights=weights, **values
    )


@torch.no_grad()
def accuracy(cls_ND: np.ndarray[Any, Any], number: int, width: int, tower: Path, labels: np.ndarray[Any, Any]) -> float:
    """Restate: class token `number` through torch's modules, cosine with the classes, without any other projection."""
    head: dict[str, Tensor] = {
        name.removeprefix(f"_heads.{number}."): value for name, value in ADAPTORS.items() if name.startswith(f"_heads.{number}.")
    }
    module = Residual(WIDTH, 40, width, 1, pre_norm=False)
    module.load_state_dict(head)
    images = functional.normalize(module(torch.from_numpy(cls_ND)[:, number * WIDTH : (number + 1) * WIDTH]), dim=1)
    return 100 * float(((images @ class_vectors(load_text_tower(tower).embed).t()).argmax(dim=1).numpy() == labels).mean())


def test_the_tower_decides_the_adaptor_and_its_class_token(store: FeatureStore, tmp_path: Path, weights: Path) -> None:
    dataset, teacher = store.dataset("photos"), load_teacher(resolve_teacher("radio-small", weights=weights))
    cls_ND = embed_images(teacher, dataset, np.arange(24), WHOLE).cls_ND
    assert cls_ND is not None
    for tower, name, number, width in (("clip", "clip", 0, 20), ("siglip", "siglip", 1, 24)):
        result = evaluate_zero_shot(asked(store, tmp_path, weights, tower, out=tmp_path / "out"))
        assert result["top1"] == pytest.approx(accuracy(cls_ND, number, width, tmp_path / tower, dataset.labels()))
        named = evaluate_zero_shot(asked(store, tmp_path, weights, tower, out=tmp_path / "out", teacher=name))
        assert (named["already"], named["top1"]) == (True, result["top1"])
    ways = [(record["protocol"]["teacher"], record["protocol"]["way"]) for record in list_records(tmp_path / "out")]
    assert sorted(ways, key=str) == [("clip", {"adaptor": "clip", "class_token": 0}), ("siglip", {"adaptor": "siglip", "class_token": 1})]


def test_cached_tokens_take_the_adaptor_from_their_own_weights(store: FeatureStore, tmp_path: Path, weights: Path) -> None:
    dataset, teacher = store.dataset("photos"), load_teacher(resolve_teacher("radio-small", weights=weights, size_px=TEACHER_PX))
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=1, kind="center"), images_per_shard=8)
    reader = extract(store, teacher, views, "radio-small", "fp32")
    cls_ND = read_embeddings(reader, np.arange(24)).cls_ND
    assert cls_ND is not None
    result = evaluate_zero_shot(asked(store, tmp_path, weights))
    assert result["top1"] == pytest.approx(accuracy(cls_ND, 0, 20, tmp_path / "clip", dataset.labels()))
    other = tmp_path / "other.safetensors"
    save_weights({**radio_tensors(), **ADAPTORS, "_heads.0.fc1.bias": torch.zeros(40)}, other)
    with pytest.raises(
        BadInput, match=r"where the adaptors are looked for, has .* put the file of the tokens there, or name it with --weights"
    ):
        evaluate_zero_shot(asked(store, tmp_path, other))


def test_a_student_of_radio_goes_on_through_radios_adaptor(store: FeatureStore, tmp_path: Path, weights: Path) -> None:
    dataset, spec = store.dataset("photos"), resolve_teacher("radio-small", weights=weights, size_px=TEACHER_PX)
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=1, kind="center"), images_per_shard=8)
    reader = extract(store, load_teacher(spec), views, "radio-small", "fp32")
    torch.manual_seed(5)
    target = TargetSpec(reader.cls_dim, reader.patch_dim, spec.grid)
    student, run = Student(build_encoder({"name": "vit-mini", "layer_scale": 1.0}), 8, {"radio-small": target}), tmp_path / "run"
    save_model(student, run / "model", size_px=16, targets={"radio-small": reader.statistics.digest})
    (run / "identities.json").write_text(json.dumps({"targets": {"radio-small": {"identity": {"teacher": spec.identity()}}}}))
    options = replace(asked(store, tmp_path, weights), model=str(run), weights=None)
    with pytest.raises(BadInput, match="weights of teacher radio-small are missing"):
        evaluate_zero_shot(options)
    kept = weights_folder() / "radio-small.safetensors"
    save_weights({**radio_tensors(), **ADAPTORS}, kept)
    result = evaluate_zero_shot(options)
    own = embed_images(load_teacher(resolve_teacher(str(run))), dataset, np.arange(24), WHOLE)
    assert own.cls_ND is not None
    with torch.no_grad():
        adapted = student.adapters[0](Tokens(torch.from_numpy(own.cls_ND), torch.zeros(24, 1, 1, 48))).cls_BD.numpy()
    wanted = accuracy(reader.statistics.denormalize_cls(adapted), 0, 20, tmp_path / "clip", dataset.labels())
    assert result["top1"] == pytest.approx(wanted)
    (record,) = list_records(run)
    assert record["protocol"]["teacher"] == "radio-small"
    assert record["protocol"]["way"]["radio"] == spec.weights_sha256
    save_weights({**radio_tensors(), **ADAPTORS, "_heads.0.fc1.bias": torch.zeros(40)}, kept)
    with pytest.raises(BadInput, match="put the file of the tokens there"):
        evaluate_zero_shot(options)


def test_retrieval_goes_the_same_way(store: FeatureStore, tmp_path: Path, weights: Path) -> None:
    dataset = store.dataset("photos")
    (tmp_path / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{dataset.row(index).id},red thing {index}\n" for index in range(24))
    )
    write_clip(tmp_path / "clip")
    options = RetrievalOptions(
        model="radio-small", data="photos", store=store.url, captions=tmp_path / "captions.csv", text=tmp_path / "clip", weights=weights,
        out=tmp_path / "out",
    )  # fmt: skip
    assert evaluate_retrieval(options)["image_to_text_r10"] >= 0
    (record,) = list_records(tmp_path / "out")
    assert record["protocol"]["way"] == {"adaptor": "clip", "class_token": 0}


def test_what_leads_to_no_text_is_refused_and_check_says_so_beforehand(store: FeatureStore, tmp_path: Path, weights: Path) -> None:
    def found(**values: Any) -> list[str]:
        options = asked(store, tmp_path, weights, **values)
        told = [finding["missing"] for finding in evaluate_zero_shot(ZeroShotOptions(**{**vars(options), "check": True}))["findings"]]
        if told:
            with pytest.raises(BadInput) as refused:
                evaluate_zero_shot(options)
            assert told == [str(refused.value)]
        return told

    assert found() == []
    assert "adaptor siglip" in found(teacher="siglip")[0]
    save_weights(radio_tensors(), weights)
    assert "holds no adaptors" in found()[0]
    weights.unlink()
    assert "weights of teacher radio-small are missing" in found()[0]
    options = asked(store, tmp_path, weights)
    with pytest.raises(BadInput, match="random weights, so there is no file with its adaptors"):
        evaluate_zero_shot(ZeroShotOptions(**{**vars(options), "weights": None, "allow_random_weights": True}))
