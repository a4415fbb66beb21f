"""A dataset that was indexed upright is evaluated as stored, as the paper and the official code read images; its cached tokens are ours."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.knn import knn_of_features, knn_of_model
from eupe_pipeline.jobs.evaluation.labelled_features import EvaluationSize, Split, open_data, read_upright
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.jobs.training.evaluate_while_training import load_held_out
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from PIL import Image

from ...conftest import extract
from ..evaluation_request import evaluate_knn, evaluate_linear

SIZES = EvaluationSize(), EvaluationSize(train_images=20, test_images=18)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """`train` and `test`, both indexed upright and as stored: three classes of slopes, most of them turned or mirrored by their EXIF."""
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    generator, store = np.random.default_rng(3), FeatureStore.create(str(tmp_path / "store"))
    y, x = np.mgrid[:20, :32]
    for name in ("train", "test"):
        for n in range(24):
            slope = (x, y, x + y)[n % 3][..., None] * np.array([4.0, 3.0, 2.0]) + generator.normal(60, 20, (20, 32, 3))
            exif = Image.Exif()
            exif[0x0112] = 1 + n % 8
            target = tmp_path / name / f"class{n % 3}" / f"{n:02d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(slope.clip(0, 255).astype(np.uint8)).save(target, exif=exif)
        build_index(store.objects, str(tmp_path / name), name)
        build_index(store.objects, str(tmp_path / name), f"{name}-stored", orientation="stored")
    return store


@pytest.mark.parametrize("size", SIZES, ids=["whole", "a sample"])
def test_a_models_figures_are_those_over_the_index_of_stored_images(tiny_store: Any, store: FeatureStore, size: EvaluationSize) -> None:
    run, events = str(tiny_store.teacher_run), list[dict[str, Any]]()
    upright = evaluate_knn(run, store, "train", "test", size=size, out=Path(store.url).parent / "out", on_event=events.append)
    stored = evaluate_knn(run, store, "train-stored", "test-stored", size=size, out=Path(store.url).parent / "out")
    for feature in ("cls", "mean_patch"):
        assert upright[feature] == stored[feature]
        assert set(upright[feature]) == {"paper", "official", "ours"}
    assert (upright["already"], stored["already"]) == (False, False)
    assert "images_read" not in upright
    assert not [event for event in events if event["event"] == "warning"]
    again = evaluate_knn(run, store, "train", "test", size=size, out=Path(store.url).parent / "out")
    assert (again["already"], again["cls"]) == (True, upright["cls"])


@pytest.mark.parametrize("size", SIZES, ids=["whole", "a sample"])
def test_every_split_of_such_a_dataset_has_the_features_of_stored_images(
    tiny_store: Any, store: FeatureStore, size: EvaluationSize
) -> None:
    """What zero-shot classification and the linear probe are computed from, too."""
    model, classes = open_model(str(tiny_store.teacher_run)), ["class0", "class1", "class2"]
    splits = [Split(model, store, open_data(store, name), size, size.test_images, "test") for name in ("test", "test-stored")]
    upright, stored = (split.features(classes, lambda event: None) for split in splits)
    np.testing.assert_array_equal(upright.embeddings.mean_patch_ND, stored.embeddings.mean_patch_ND)
    np.testing.assert_array_equal(upright.images, stored.images)
    turned = Split(model, store, store.dataset("test"), size, size.test_images, "test").features(classes, lambda event: None)
    assert (turned.embeddings.mean_patch_ND != upright.embeddings.mean_patch_ND).any()
    assert read_upright(*splits) == {}
    assert splits[0].protocol()["orientation"] == "stored"
    assert "orientation" not in splits[1].protocol()


def test_a_linear_probe_and_the_demonstrations_knn_read_as_stored_too(tiny_store: Any, store: FeatureStore) -> None:
    run, out = str(tiny_store.teacher_run), Path(store.url).parent / "out"
    found = [evaluate_linear(run, store, f"train{one}", f"test{one}", powers=(0.0, 2.0), out=out) for one in ("", "-stored")]
    assert found[0]["top1"] == found[1]["top1"]
    assert found[0]["validation_by_power"] == found[1]["validation_by_power"]
    assert "images_read" not in found[0]
    compared = [knn_of_model(store, run, f"train{one}", f"test{one}") for one in ("", "-stored")]
    assert compared[0]["cls"] == compared[1]["cls"]


def test_of_cached_tokens_of_turned_images_only_our_figures_are_given(tiny_store: Any, store: FeatureStore) -> None:
    keys = []
    for name in ("train", "test"):
        views = ViewSet.create(store.objects, store.dataset(name), ViewSpec(kind="center"), images_per_shard=24)
        keys.append(extract(store, tiny_store.teacher, views, "cached", "fp32").key)
    events, out = list[dict[str, Any]](), Path(store.url).parent / "out"
    found = evaluate_knn(keys[0], store, "train", "test", out=out, on_event=events.append)
    assert set(found["cls"]) == set(found["mean_patch"]) == {"ours"}
    assert " upright" in found["images_read"]
    (said,) = [event["text"] for event in events if event["event"] == "warning"]
    assert "the figures named paper and official are left out" in said
    assert "read images as stored" in said
    at_once = knn_of_features(store, keys[0], keys[1])
    assert at_once["cls"] == {"ours": found["cls"]["ours"]}
    events.clear()
    probed = evaluate_linear(keys[0], store, "train", "test", powers=(0.0,), out=out, on_event=events.append)
    assert " upright" in probed["images_read"]
    assert "not the published protocol's" in next(event["text"] for event in events if event["event"] == "warning")


def test_an_evaluation_while_training_reads_as_stored(tiny_store: Any, store: FeatureStore) -> None:
    encoder = tiny_store.teacher.encoder
    learner: Any = SimpleNamespace(student=SimpleNamespace(encoder=encoder), ranks=SimpleNamespace(first=True))
    upright, stored = (load_held_out(Watch("knn", 2, name, 24), store, learner, [], lambda event: None) for name in ("test", "test-stored"))
    np.testing.assert_array_equal(upright.pixels_NHWC, stored.pixels_NHWC)
    np.testing.assert_array_equal(upright.labels_N, stored.labels_N)
