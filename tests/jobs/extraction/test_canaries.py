"""The canary in the store: recorded once, compared ever after."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.canaries import check_canary
from eupe_pipeline.storage.core.errors import CacheDamaged, CacheMismatch
from eupe_pipeline.storage.store import FeatureStore, canary_key
from eupe_pipeline.teachers.registry.resolve import load_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


@pytest.fixture
def teacher(tiny_store: Any) -> Teacher:
    return load_teacher(tiny_store.teacher.spec)


def test_the_first_worker_records_and_the_second_agrees(store: FeatureStore, teacher: Teacher) -> None:
    assert check_canary(store, teacher) == pytest.approx(1.0)
    data = store.objects.read(canary_key(teacher.spec.identity()))
    assert check_canary(store, teacher) == pytest.approx(1.0)
    assert store.objects.read(canary_key(teacher.spec.identity())) == data


def test_each_identity_has_its_own_record(store: FeatureStore, teacher: Teacher) -> None:
    check_canary(store, teacher)
    check_canary(store, Teacher(replace(teacher.spec, precision="bf16"), teacher.encoder))
    assert len(store.objects.names("canaries")) == 2


@pytest.mark.fault(17, "detected")
def test_weights_that_changed_in_memory_are_refused_by_name_and_place(store: FeatureStore, teacher: Teacher) -> None:
    check_canary(store, teacher)
    with torch.no_grad():
        next(parameter for parameter in teacher.encoder.parameters() if parameter.ndim > 1).mul_(-1)
    with pytest.raises(CacheMismatch, match=rf"{teacher.spec.name}: the teacher is not the one.*canaries/"):
        check_canary(store, teacher)


@pytest.mark.fault(17, "detected")
def test_a_teacher_without_numbers_leaves_no_record(store: FeatureStore, teacher: Teacher) -> None:
    with torch.no_grad():
        next(teacher.encoder.parameters()).fill_(np.nan)
    with pytest.raises(CacheMismatch):
        check_canary(store, teacher)
    assert store.objects.names("canaries") == []


@pytest.mark.fault(17, "detected")
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_record_is_an_error_that_says_what_to_remove(store: FeatureStore, teacher: Teacher, damage: str, tmp_path: Path) -> None:
    check_canary(store, teacher)
    path = tmp_path / "store" / canary_key(teacher.spec.identity())
    body = path.read_bytes()
    values = json.loads(body)["arrays"]["cls"]["float32"]
    changed = body.replace(values.encode(), (values[:8] + ("A" if values[8] != "A" else "B") + values[9:]).encode())
    path.write_bytes({"flip": changed, "cut": body[:-3], "empty": b"", "other": b"[]"}[damage])
    with pytest.raises(CacheDamaged, match="remove it"):
        check_canary(store, teacher)
