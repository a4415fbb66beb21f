"""The demonstration's recipe holds what the demonstration needs, and nothing unknown."""

from pathlib import Path

import pytest
from eupe_pipeline.pipeline.demo.demo_recipe import load_demo
from eupe_pipeline.pipeline.recipes.load import FOLDER
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.input_size import square_side
from eupe_pipeline.teachers.encoders.build import facts


def changed(folder: Path, old: str, new: str) -> str:
    text = (FOLDER / "demo.toml").read_text()
    assert old in text
    (folder / "demo.toml").write_text(text.replace(old, new, 1))
    return str(folder / "demo.toml")


def test_the_demo_walks_through_all_three_stages_with_two_teachers_of_different_input_sizes() -> None:
    demo = load_demo()
    assert sorted(demo.stages) == [1, 2, 3]
    assert len(demo.extract.teachers) == 2
    assert len(set(demo.extract.teacher_sizes_px.values())) == 2
    assert demo.data.test_images >= 1000


def test_stage_three_runs_the_proxy_live_at_three_scales_that_its_patches_divide() -> None:
    recipe = load_demo().stages[3].recipe
    assert recipe.teacher.source == "live"
    assert len(recipe.student.sizes_px) == len(recipe.teacher.sizes_px) == 3
    stride_px = facts({**recipe.student.options, "name": recipe.student.architecture}).stride_px
    assert all(square_side(size, "") % stride_px == 0 for size in (*recipe.student.sizes_px, *recipe.teacher.sizes_px))


def test_stage_three_goes_on_from_the_student_of_stage_two() -> None:
    stages = load_demo().stages
    assert stages[3].recipe.student.architecture == stages[2].recipe.student.architecture
    assert dict(stages[3].recipe.student.options) == dict(stages[2].recipe.student.options)
    assert stages[3].recipe.adapter == stages[2].recipe.adapter


@pytest.mark.parametrize(("old", "new", "says"), [
    ("[data]\n", "[data]\ntrain_imagse = 1\n", "did you mean 'train_images'"),
    ("[data]\n", "[dta]\n", "unknown table.*'dta'; did you mean 'data'"),
    ("views_per_image", "view_per_image", "did you mean 'views_per_image'"),
    ('teachers = ["efficientnet-lite0", ', "teachers = [", "unknown teacher.*'efficientnet-lite0'"),
    ("test_images = 2000", "test_images = 10_001", "CIFAR-10 has"),
    ('codec = "int8"', 'codec = "int7"', "extract.*codec is 'int7', wanted 'fp32' or"),
])  # fmt: skip
def test_a_change_that_cannot_work_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_demo(changed(tmp_path, old, new))
