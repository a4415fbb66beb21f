"""kNN over a tiny store: runs and exports over images, teachers over cached tokens, the same sample for all, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.knn import (
    EvaluationSize,
    compare,
    embed_images,
    knn_of_features,
    knn_of_model,
    labels_as,
    read_embeddings,
    sample_images,
)
from eupe_pipeline.jobs.evaluation.labelled_features import open_data, split_folders
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.probes.evaluation_records import list_records
from eupe_pipeline.student.probes.knn import Embeddings

from ...student.export.test_export import make_run
from ..evaluation_request import evaluate_knn, evaluate_linear


@dataclass(frozen=True)
class Evaluable:
    """A copy of the tiny store and of its teacher's run, which evaluations may write to."""

    store: FeatureStore
    run: Path
    home: Path

    def knn(self, model: object, **more: Any) -> dict[str, Any]:
        size = replace(more.pop("size", EvaluationSize()), allow_overlap=True)
        return evaluate_knn(str(model), self.store, "photos", "photos", size=size, **more)


@pytest.fixture
def copied(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluable:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_store.store.url.removeprefix("file://"), tmp_path / "store")
    shutil.copytree(tiny_store.teacher_run, tmp_path / "run")
    return Evaluable(FeatureStore.open(str(tmp_path / "store")), tmp_path / "run", tmp_path / "home")


def test_a_run_is_evaluated_by_both_protocols_and_both_features(copied: Evaluable, events: Any) -> None:
    seen, on_event = events
    result = copied.knn(copied.run, on_event=on_event)
    assert set(result["cls"]) == {"paper", "official", "ours"}
    assert set(result["mean_patch"]["official"]) == {"10", "20", "24"}
    assert 0 <= result["cls"]["paper"] <= 100
    assert (result["train_images"], result["test_images"], result["size_px"]) == (24, 24, 16)
    assert [event["event"] for event in seen[:2]] == ["warning", "knn"]
    assert "24 of 24 test images are also learnt from" in seen[0]["text"]
    assert result["test_images_in_train"] == 24
    assert result["differs_from_paper"] == ["the input is 16 px, the paper's 224; --size 224 measures as it does"]
    assert "k of 100, 200 is above the 24 training images" in next(event["text"] for event in seen if event["event"] == "note")


def test_results_land_in_the_runs_folder_with_the_protocol_and_are_found_again(copied: Evaluable, events: Any) -> None:
    seen, on_event = events
    first = copied.knn(copied.run)
    again = copied.knn(copied.run, on_event=on_event)
    assert (first["already"], again["already"]) == (False, True)
    assert {**first, "already": True} == again
    assert [event["event"] for event in seen] == ["warning"]
    (record,) = list_records(copied.run)
    assert record["protocol"]["train"]["digest"] == copied.store.dataset("photos").digest
    assert record["protocol"]["train"]["view"] == {"crop": "center", "fraction": 1.0, "size_px": 16, "interpolation": "bicubic"}
    assert record["protocol"]["official"] == {"ks": [10, 20, 100, 200], "temperature": 0.07}
    assert record["protocol"]["model"]["weights_sha256"]
    assert copied.knn(copied.run, size=EvaluationSize(crop_fraction=0.8))["record"] != first["record"]
    Path(first["record"]).write_text("{}")
    with pytest.raises(CacheDamaged, match="remove it and evaluate again"):
        copied.knn(copied.run)


def test_features_that_go_through_the_store_give_what_a_direct_forward_gives(copied: Evaluable) -> None:
    through, direct = copied.knn(copied.run), knn_of_model(copied.store, str(copied.run), "photos", "photos")
    assert {key: through[key] for key in ("cls", "mean_patch")} == {key: direct[key] for key in ("cls", "mean_patch")}


def test_a_stopped_feature_extraction_goes_on_at_its_missing_shard(copied: Evaluable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.pooled_features.IMAGES_PER_SHARD", 8)
    done: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["stage"].startswith("features"):
            done.append(event["done"])
            if len(done) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copied.knn(copied.run, on_event=stop)
    result = copied.knn(copied.run, on_event=stop)
    assert done == [8, 16, 8]
    assert result["cls"] == knn_of_model(copied.store, str(copied.run), "photos", "photos")["cls"]


@pytest.mark.parametrize("form", ["timm", "transformers"])
def test_an_exported_folder_is_evaluated_as_its_run_is(copied: Evaluable, form: str) -> None:
    export(ExportOptions(copied.run, copied.home / "out", (form,)))
    result = copied.knn(copied.home / "out" / form)
    assert result["cls"] == copied.knn(copied.run)["cls"]
    assert Path(result["record"]).parent == copied.home / "out" / form / "evaluations"


def test_an_official_state_dict_and_its_folder_are_the_runs_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    run = make_run(tmp_path / "run", "eupe_vitt16", 32)
    export(ExportOptions(run, tmp_path / "out", ("eupe",)))
    file = next((tmp_path / "out" / "eupe").glob("*.pth"))
    pixels = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = open_model(str(run)).load("cpu")(pixels)
    for model in (open_model(str(tmp_path / "out" / "eupe")), open_model(str(file), size_px=32)):
        assert model.spec.preprocessing.size_px == 32
        torch.testing.assert_close(model.load("cpu")(pixels).patch_BHWD, wanted.patch_BHWD)
    assert open_model(str(file)).folder.parent == tmp_path / "home" / "evaluations"


def test_an_export_that_we_do_not_evaluate_says_which_we_do(copied: Evaluable) -> None:
    (copied.home / "onnx").mkdir(parents=True)
    (copied.home / "onnx" / "export.json").write_text(json.dumps({"format": "onnx"}))
    with pytest.raises(BadInput, match="as timm or transformers"):
        copied.knn(copied.home / "onnx")


def test_a_teacher_is_evaluated_from_its_cached_tokens(copied: Evaluable) -> None:
    result = copied.knn("tiny-teacher")
    # Gradients in three directions are easy even for random features, and each image is among its own neighbours.
    assert result["mean_patch"]["official"]["10"] > 60
    assert result["train"] == result["test"] == copied.store.features("tiny-teacher").key
    assert copied.home in Path(result["record"]).parents
    assert copied.knn("tiny-teacher", out=copied.home / "here")["record"].startswith(str(copied.home / "here"))


def test_images_without_tokens_are_left_out(copied: Evaluable) -> None:
    assert copied.knn("tiny-gaps")["train_images"] == 23


@pytest.mark.parametrize("name", ["tiny-teacher", "tiny-int8"])
def test_cached_tokens_are_denormalised_to_the_teachers_own(tiny_store: Any, name: str) -> None:
    reader = tiny_store.features(name)
    found = read_embeddings(reader, np.arange(24))
    assert found.cls_ND is not None
    raw = reader.statistics.denormalize_patch(reader.decode(reader.read(np.arange(24) * 2)))
    np.testing.assert_allclose(found.mean_patch_ND, raw.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_size_and_crop_reach_the_model(copied: Evaluable) -> None:
    size = EvaluationSize(size_px=24, crop_fraction=0.8, batch_size=5)
    assert copied.knn(copied.run, size=size)["size_px"] == 24


def test_batches_do_not_change_features(tiny_store: Any) -> None:
    dataset = tiny_store.store.dataset("photos")
    one, other = (embed_images(tiny_store.teacher, dataset, np.arange(6), EvaluationSize(batch_size=size)) for size in (6, 4))
    np.testing.assert_allclose(one.mean_patch_ND, other.mean_patch_ND, rtol=1e-4, atol=1e-5)


def test_a_sample_is_the_same_for_every_model_and_spreads_over_classes(tiny_store: Any) -> None:
    dataset = tiny_store.store.dataset("photos")
    one = sample_images(dataset, 12, "train")
    assert np.array_equal(one, sample_images(dataset, 12, "train"))
    assert len(np.unique(one)) == 12
    assert set(dataset.labels()[one].tolist()) == {0, 1, 2}
    assert len(sample_images(dataset, None, "train")) == len(sample_images(dataset, 99, "train")) == 24


def test_limits_are_applied(copied: Evaluable) -> None:
    size = EvaluationSize(train_images=20, test_images=7)
    for model in (copied.run, "tiny-teacher"):
        result = copied.knn(model, size=size)
        assert (result["train_images"], result["test_images"]) == (20, 7)


def test_permuted_labels_fall_to_chance() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    features = (np.eye(4, 16)[labels] + 0.3 * generator.normal(size=(2000, 16))).astype(np.float32)
    bank, queries = Embeddings(features[:1000], features[:1000]), Embeddings(features[1000:], features[1000:])
    assert compare(bank, labels[:1000], queries, labels[1000:])["cls"]["paper"] > 80
    permuted = compare(bank, generator.permutation(labels[:1000]), queries, labels[1000:])
    assert 18 < permuted["cls"]["paper"] < 32
    assert 18 < permuted["cls"]["ours"] < 32
    assert 18 < permuted["cls"]["official"]["200"] < 32


def test_a_linear_probe_learns_what_neighbours_see_and_keeps_its_sweep(copied: Evaluable) -> None:
    size = EvaluationSize(allow_overlap=True)
    result = evaluate_linear(str(copied.run), copied.store, "photos", "photos", powers=(-2.0, 0.0, 2.0), size=size)
    assert result["top1"] > 60
    assert set(result["validation_by_power"]) == {"-2", "0", "2"}
    assert [record["evaluation"] for record in list_records(copied.run)] == ["linear"]
    assert not list((copied.run / "evaluations").glob("*.partial.json"))


def test_a_dry_run_says_what_would_be_evaluated_and_computes_nothing(copied: Evaluable) -> None:
    before = copied.store.list_features()
    plan = copied.knn(copied.run, dry_run=True)
    assert plan["protocol"]["test"]["images"] == 24
    assert (copied.store.list_features(), list_records(copied.run)) == (before, [])


def test_folders_of_images_are_indexed_once(copied: Evaluable, tiny_store: Any, events: Any) -> None:
    seen, on_event = events
    for split in ("train", "val"):
        shutil.copytree(tiny_store.teacher_run.parent / "images", copied.home / "data" / split)
    train, val = split_folders(str(copied.home / "data"))
    result = evaluate_knn(str(copied.run), copied.store, train, val, size=EvaluationSize(allow_overlap=True))
    assert result["cls"] == copied.knn(copied.run)["cls"]
    assert open_data(copied.store, train, on_event).digest == copied.store.dataset("photos").digest
    assert "is indexed as data-train@" in seen[0]["text"]
    with pytest.raises(BadInput, match="no folder train or training"):
        split_folders(str(copied.home))


def test_labels_are_matched_by_name(tiny_store: Any) -> None:
    dataset = tiny_store.store.dataset("photos")
    turned = labels_as(dataset, list(reversed(dataset.label_names)))
    assert np.array_equal(turned, 2 - dataset.labels())
    with pytest.raises(BadInput, match="class2"):
        labels_as(dataset, ["class0", "class1"])


@pytest.mark.parametrize(("model", "why"), [
    ("tiny-teecher", "tiny-int8"),
    ("efficientnet-lite0", "weights of teacher efficientnet-lite0 are missing"),
    (".", "finish that run first"),
])  # fmt: skip
def test_what_is_not_a_model_is_refused_and_the_known_listed(copied: Evaluable, model: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        copied.knn(copied.home.parent if model == "." else model)


def with_teacher(store: FeatureStore, identity: dict[str, Any]) -> Callable[[str], Any]:
    reader = store.features("tiny-teacher")
    reader.identity["teacher"] = identity
    return lambda name: reader if name == "tiny-teacher" else FeatureStore.features(store, name)


def test_feature_sets_of_two_teachers_are_refused(copied: Evaluable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert knn_of_features(copied.store, "tiny-teacher", "tiny-int8")["test_images"] == 24
    monkeypatch.setattr(copied.store, "features", with_teacher(copied.store, {"architecture": "another"}))
    with pytest.raises(CacheMismatch, match="different teachers"):
        knn_of_features(copied.store, "tiny-teacher", "tiny-int8")
