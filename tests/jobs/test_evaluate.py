"""kNN over a tiny store: runs over images, teachers over cached tokens, the same sample for all, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluate import EvaluationSize, embed_images, knn, knn_of_features, labels_as, read_embeddings, sample_images
from eupe_pipeline.storage.errors import BadInput


def test_a_run_is_evaluated_by_both_protocols_and_both_features(tiny_store: Any, events: Any) -> None:
    seen, on_event = events
    result = knn(str(tiny_store.teacher_run), tiny_store.store, "photos", "photos", on_event=on_event)
    assert set(result["cls"]) == {"paper", "official"}
    assert set(result["mean_patch"]["official"]) == {"10", "20"}
    assert 0 <= result["cls"]["paper"] <= 100
    assert (result["train_images"], result["test_images"], result["size_px"]) == (24, 24, 16)
    assert seen[0]["event"] == "knn"


def test_a_teacher_is_evaluated_from_its_cached_tokens(tiny_store: Any) -> None:
    result = knn("tiny-teacher", tiny_store.store, "photos", "photos")
    # Gradients in three directions are easy even for random features, and each image is among its own neighbours.
    assert result["mean_patch"]["official"]["10"] > 60
    assert result["train"] == result["test"] == tiny_store.features().key


def test_images_without_tokens_are_left_out(tiny_store: Any) -> None:
    assert knn("tiny-gaps", tiny_store.store, "photos", "photos")["train_images"] == 23


def test_cached_tokens_are_denormalised_to_the_teachers_own(tiny_store: Any) -> None:
    reader = tiny_store.features()
    found = read_embeddings(reader, np.arange(24))
    assert found.cls_ND is not None
    rows = np.arange(24) * 2
    raw = reader.statistics.denormalize_patch(reader.read(rows).patch)
    np.testing.assert_allclose(found.mean_patch_ND, raw.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_size_and_crop_reach_the_model(tiny_store: Any) -> None:
    size = EvaluationSize(size_px=24, crop_fraction=0.8, batch_size=5)
    result = knn(str(tiny_store.teacher_run), tiny_store.store, "photos", "photos", size=size)
    assert result["size_px"] == 24


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


def test_limits_are_applied(tiny_store: Any) -> None:
    size = EvaluationSize(train_images=20, test_images=7)
    for model in (str(tiny_store.teacher_run), "tiny-teacher"):
        result = knn(model, tiny_store.store, "photos", "photos", size=size)
        assert (result["train_images"], result["test_images"]) == (20, 7)


def test_labels_are_matched_by_name(tiny_store: Any) -> None:
    dataset = tiny_store.store.dataset("photos")
    turned = labels_as(dataset, list(reversed(dataset.label_names)))
    assert np.array_equal(turned, 2 - dataset.labels())
    with pytest.raises(BadInput, match="class2"):
        labels_as(dataset, ["class0", "class1"])


def test_an_unknown_model_is_refused_and_the_known_listed(tiny_store: Any) -> None:
    with pytest.raises(BadInput, match="tiny-int8"):
        knn("tiny-teecher", tiny_store.store, "photos", "photos")


def test_a_run_without_a_model_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="finish that run first"):
        knn(str(tmp_path), tiny_store.store, "photos", "photos")


def test_feature_sets_of_two_teachers_are_refused(tiny_store: Any) -> None:
    from eupe_pipeline.storage.errors import CacheMismatch

    same = knn_of_features(tiny_store.store, "tiny-teacher", "tiny-int8")
    assert same["test_images"] == 24
    reader = tiny_store.store.features("tiny-teacher")
    reader.identity["teacher"] = {"architecture": "another"}

    class Swapped:
        url = tiny_store.store.url

        def features(self, name: str) -> Any:
            return reader if name == "tiny-teacher" else tiny_store.store.features(name)

    with pytest.raises(CacheMismatch, match="different teachers"):
        knn_of_features(Swapped(), "tiny-teacher", "tiny-int8")  # type: ignore[arg-type]
