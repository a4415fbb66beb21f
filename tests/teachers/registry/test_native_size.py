"""A PE teacher off its native size is warned of, by every name that it goes by; no other teacher is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.teachers.registry.native_size import size_warning
from eupe_pipeline.teachers.registry.resolve import resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec


def spec(name: str, size_px: int | None) -> TeacherSpec:
    return resolve_teacher(name, size_px=size_px, allow_random_weights=True)


@pytest.mark.parametrize(("name", "off", "native"), [
    ("pecore-g", 224, 448), ("pecore-g-projected", 224, 448), ("pelang-g", 336, 448), ("pelang-g-no-cls", 224, 448),
    ("timm:vit_pe_core_tiny_patch16_384.fb", 256, 384), ("timm:vit_pe_spatial_tiny_patch16_512.fb", 256, 512),
])  # fmt: skip
def test_pe_off_its_native_size_is_warned_of_and_at_it_not(name: str, off: int, native: int) -> None:
    said = size_warning(spec(name, off))
    assert said is not None
    assert f"at {off} px is off PE's native {native} px" in said
    assert f"--teacher-size {name}={native}" in said
    assert size_warning(spec(name, native)) is None
    assert size_warning(spec(name, None)) is None


@pytest.mark.parametrize("name", ["dinov3-h+", "siglip2-g"])
def test_other_teachers_may_have_any_size(name: str) -> None:
    assert size_warning(spec(name, 512)) is None


def test_an_extraction_says_it_before_it_begins(tiny_store: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    request = TeacherRequest("pecore-g", size_px=224)
    options = ExtractOptions(tiny_store.store.url, "photos", (request,), allow_random_weights=True, dry_run=True)
    extract_features(options, seen.append)
    assert [event["text"] for event in seen if event["event"] == "warning"] == [size_warning(spec(request.name, 224))]
    seen.clear()
    extract_features(replace(options, teachers=(replace(request, size_px=448),)), seen.append)
    assert [event for event in seen if event["event"] == "warning"] == []
