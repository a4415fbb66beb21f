from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.registry.spec import PythonSource, TeacherSpec

SPEC = TeacherSpec(
    name="a",
    architecture={"name": "vit", "width": 48},
    weights_path=Path("a.safetensors"),
    weights_sha256="0" * 64,
    preprocessing=Preprocessing(64),
    cls="class token",
    cls_dim=48,
    patch_dim=48,
    grid=(4, 4),
)
OTHER: dict[str, Any] = {
    "architecture": {"name": "vit", "width": 96},
    "weights_sha256": "1" * 64,
    "preprocessing": Preprocessing(64, "bilinear"),
    "cls": "attention pool",
    "cls_dim": 64,
    "patch_dim": 64,
    "grid": (2, 2),
    "precision": "bf16",
}
FOR_PEOPLE = {  # of a source, its sha256 stands in the architecture
    "name": "b", "weights_path": Path("/elsewhere/b.safetensors"), "source": PythonSource(Path("/b.py"), b"", "build"),
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(OTHER))
def test_a_change_in_any_field_is_another_identity(field: str) -> None:
    assert digest(replace(SPEC, **{field: OTHER[field]}).identity()) != digest(SPEC.identity())


@pytest.mark.parametrize("field", sorted(FOR_PEOPLE))
def test_a_name_and_a_path_are_for_people_only(field: str) -> None:
    changes: dict[str, Any] = {field: FOR_PEOPLE[field]}
    assert replace(SPEC, **changes).identity() == SPEC.identity()


def test_every_field_is_either_in_the_identity_or_for_people() -> None:
    assert {field.name for field in fields(TeacherSpec)} == {*OTHER, *FOR_PEOPLE}
    assert set(SPEC.identity()) == set(OTHER)


def test_no_class_token_means_no_width() -> None:
    assert replace(SPEC, cls="none", cls_dim=None).identity()["cls_dim"] is None
    with pytest.raises(BadInput, match="cls is 'none' with width 48"):
        replace(SPEC, cls="none")
    with pytest.raises(BadInput, match="cls is 'class token' with width None"):
        replace(SPEC, cls_dim=None)


def test_unknown_kinds_of_class_token_and_precisions_are_refused() -> None:
    with pytest.raises(BadInput, match="first token"):
        replace(SPEC, cls="first token")
    with pytest.raises(BadInput, match="fp8"):
        replace(SPEC, precision="fp8")


def test_another_size_moves_the_grid_and_the_input_together() -> None:
    larger = SPEC.at_size(96)
    assert larger.grid == (6, 6)
    assert larger.preprocessing.size_px == 96
    assert larger.stride_px == SPEC.stride_px == 16


@pytest.mark.parametrize(("size_px", "nearest"), [(1, 16), (15, 16), (70, 64), (100, 96)])
def test_a_size_off_the_stride_is_refused_with_the_nearest(size_px: int, nearest: int) -> None:
    with pytest.raises(BadInput, match=f"the nearest is {nearest}$"):
        SPEC.at_size(size_px)
