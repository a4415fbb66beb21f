"""Evaluations over a dataset that grew or lost images: nobody asks for the bytes of a removed one, and known features are used again."""

from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.curate import curate_features
from eupe_pipeline.jobs.curation.options import CurateOptions
from eupe_pipeline.jobs.evaluation.knn import KnnOptions, evaluate_knn
from eupe_pipeline.jobs.evaluation.labelled_features import open_data, sample_images
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.pipeline.pictures.neighbours import galleries
from eupe_pipeline.pipeline.reports.page_contents import dataset_photos
from eupe_pipeline.teachers.registry import teacher as teacher_module

from ..growing import Growing


@pytest.fixture
def lessened(growing: Growing) -> tuple[Growing, Any]:
    """Version 2: four photos more, two fewer, one of them in the last shard; extracted."""
    growing.extract()
    names = growing.store.dataset("photos").ids(0, 40)
    for number in (3, 38):
        (growing.images / names[number]).unlink()
    growing.index(allow_removed=True)
    growing.grow()
    return growing, growing.reader(growing.extract())


def test_a_model_is_evaluated_on_the_images_that_are_there(lessened: tuple[Growing, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    growing, reader = lessened
    model, out = str(growing.everything / "teacher"), growing.root / "results"
    asked = KnnOptions(
        model=model, store=growing.store.url, train_set="photos", test_set="photos", allow_overlap=True, device="cpu", out=out
    )
    whole = evaluate_knn(asked)
    assert whole["test_images_in_train"] == 42
    sampled = evaluate_knn(KnnOptions(**{**asked.__dict__, "train_images": 41, "test_images": 41}))
    assert sampled["test_images_in_train"] > 0
    cached = evaluate_knn(KnnOptions(**{**asked.__dict__, "model": reader.key}))
    assert cached["train"] == reader.key
    dataset = growing.store.dataset("photos")
    assert np.setdiff1d(np.arange(44), sample_images(dataset, None, "test")).tolist() == [3, 38]
    assert open_data(growing.store, str(growing.images)).key == dataset.key
    seen: list[int] = []
    call = teacher_module.Teacher.__call__

    def counted(self: Any, pixels: Any) -> Any:
        seen.append(len(pixels))
        return call(self, pixels)

    monkeypatch.setattr(teacher_module.Teacher, "__call__", counted)
    assert evaluate_knn(KnnOptions(**{**asked.__dict__, "out": growing.root / "again"}))["test_images_in_train"] == 42
    assert sum(seen) == 0  # the pooled features of both sets are in the store


def test_curation_fidelity_and_pictures_leave_removed_images_out(lessened: tuple[Growing, Any]) -> None:
    growing, reader = lessened
    made = curate_features(CurateOptions("teacher", growing.store.url, "most", balance=20))
    assert (made["images"], made["without_tokens"], made["kept"]) == (44, 2, 20)
    assert not {3, 38} & set(growing.store.subset("most").stays().tolist())
    figures = fidelity(FidelityOptions(growing.store.url, "teacher", growing.teacher("teacher"), sample=88))
    assert figures["views"] == 84
    assert figures["patch"]["mean"] > 0.999
    assert galleries(reader, np.array([0]), 2, lambda event: None)
    assert len(dataset_photos(reader)) == 3


def test_a_damaged_shard_of_a_version_is_repaired_with_its_teacher(lessened: tuple[Growing, Any]) -> None:
    growing, reader = lessened
    record = reader.group.record(2)
    path = growing.root / "store" / "features" / reader.key / record.objects["patch"].key
    before = path.read_bytes()
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    found = repair_features(RepairOptions(growing.store.url, reader.key, growing.teacher("teacher")))
    assert found["left"] == []
    assert path.read_bytes() == before
