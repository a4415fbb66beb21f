"""Facts are measured: photos from the index, teachers from their files, the student without memory; a trial step is a real one."""

from dataclasses import replace
from pathlib import Path

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.distillation.facts import DeviceFacts, ScaleFacts, free_memory, measure_facts, proxy_as_teacher, student_facts
from eupe_pipeline.pipeline.distillation.rules import ruled_recipe
from eupe_pipeline.pipeline.distillation.trial import trial_step
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.build import build_encoder

from ...conftest import TinyStore


@pytest.fixture(scope="module")
def facts(tiny_store: TinyStore) -> ScaleFacts:
    return measure_facts(tiny_store.store, "photos", [TeacherRequest(str(tiny_store.teacher_run))], "vit-mini", speed_batches=1)


def test_facts_are_those_of_the_photos_the_teacher_and_the_student(tiny_store: TinyStore, facts: ScaleFacts) -> None:
    assert (facts.images, facts.median_side_px, facts.labelled) == (24, 26, True)
    (teacher,) = facts.teachers
    assert (teacher.name, teacher.width, teacher.class_width, teacher.grid, teacher.size_px) == ("teacher", 48, 48, (2, 2), 16)
    assert teacher.is_proxy
    assert teacher.images_per_s is not None
    parameters = sum(one.numel() for one in build_encoder("vit-mini").parameters() if one.requires_grad)
    assert facts.student.parameters == parameters
    assert (facts.student.family, facts.student.width, facts.student.depth, facts.student.patch_px) == ("vit", 48, 2, 8)
    assert facts.device.memory_bytes > 1 << 28


def test_a_teachers_parameters_are_those_of_its_file(facts: ScaleFacts) -> None:
    stored = facts.teachers[0].parameters
    assert stored is not None
    assert facts.student.parameters <= stored <= 1.1 * facts.student.parameters, "buffers are stored as well"


def test_students_of_every_family_have_facts() -> None:
    found = [student_facts(name) for name in ("eupe_vitb16", "eupe_convnext_tiny", "timm:vit_tiny_patch16_224")]
    assert [(one.width, one.patch_px) for one in found] == [(768, 16), (768, 32), (192, 16)]
    assert [one.depth for one in found] == [12, 18, None]
    assert [one.layer_scale for one in found] == [1e-5, 1e-6, None]


def test_a_student_of_timm_gets_no_option_that_it_does_not_have(facts: ScaleFacts) -> None:
    ruled = ruled_recipe(2, replace(facts, student=student_facts("timm:vit_tiny_patch16_224")))
    assert ruled.recipe().student.options == {}


def test_a_proxy_is_a_teacher_of_its_own_width_and_grid() -> None:
    teacher = proxy_as_teacher(student_facts("eupe_vits16"), 64)
    assert (teacher.width, teacher.class_width, teacher.grid, teacher.is_proxy) == (384, 384, (4, 4), True)


def test_a_trial_step_gives_a_speed_for_a_batch_that_fits(facts: ScaleFacts) -> None:
    recipe = ruled_recipe(2, facts, steps=1000).recipe()
    trial = trial_step(recipe, facts.target_specs(), most=16)
    assert trial.fits in (8, 16)
    assert trial.images_per_s == trial.tried[trial.fits] > 0
    assert trial_step(recipe, facts.target_specs(tokens_per_view=2), most=8).fits == 8


def test_a_trial_step_ends_where_memory_would_and_refuses_what_never_fits(facts: ScaleFacts) -> None:
    recipe = ruled_recipe(2, facts, steps=1000).recipe()
    small = DeviceFacts("cpu", 20_000_000, 1)
    trial = trial_step(recipe, facts.target_specs(), most=1 << 20, device=small)
    assert trial.fits < 512
    with pytest.raises(BadInput, match="not even 8 views of vit-mini"):
        trial_step(recipe, facts.target_specs(), device=DeviceFacts("cpu", 1000, 1))


def test_what_no_dataset_teacher_or_student_is_named_is_refused(tiny_store: TinyStore, tmp_path: Path) -> None:
    run = TeacherRequest(str(tiny_store.teacher_run))
    with pytest.raises(BadInput, match="vit-mini"):
        measure_facts(tiny_store.store, "photos", [run], "vit-mino")
    with pytest.raises(BadInput, match="photos"):
        measure_facts(tiny_store.store, "fotos", [run], "vit-mini")
    with pytest.raises(BadInput, match="unknown teacher"):
        measure_facts(tiny_store.store, "photos", [TeacherRequest("dinov3-g")], "vit-mini")


def test_a_containers_limit_bounds_the_free_memory(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n", "sys/fs/cgroup/memory.max": "3000000",
        "sys/fs/cgroup/memory.current": "1000000\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == 2_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 4_096_000
