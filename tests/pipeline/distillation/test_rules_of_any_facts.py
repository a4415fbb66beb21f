"""Whatever the facts are, a rule gives a recipe that is valid, and a budget gives a plan that fits or says why not."""

from dataclasses import replace

from eupe_pipeline.pipeline.distillation.budget import Choice, choose_within_budget, default_candidates, store_cost
from eupe_pipeline.pipeline.distillation.facts import DeviceFacts, ScaleFacts, StudentFacts, TeacherFacts
from eupe_pipeline.pipeline.distillation.rules import ruled_recipe, ruled_sizes
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.input_size import as_size, size_hw
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def teachers(draw: st.DrawFn, name: str = "one") -> TeacherFacts:
    stride, rows = draw(st.sampled_from([8, 14, 16, 32])), draw(st.integers(2, 64))
    columns = draw(st.sampled_from([rows, max(2, 3 * rows // 4), 2 * rows]))
    width = draw(st.sampled_from([48, 192, 256, 1280, 1536]))
    size, rate = as_size([stride * rows, stride * columns]), draw(st.floats(0.1, 1e4))
    return TeacherFacts(name, width, draw(st.sampled_from([None, width, 1024])), (rows, columns), size, images_per_s=rate)


@st.composite
def facts(draw: st.DrawFn) -> ScaleFacts:
    images = draw(st.integers(1, 10**4) | st.integers(1, 2 * 10**9))
    patch, width = draw(st.sampled_from([8, 14, 16, 32])), draw(st.sampled_from([24, 96, 192, 768, 1536]))
    student = StudentFacts("vit", "vit", width, 12, patch, 1000 * width, draw(st.sampled_from([None, 1e-5])))
    device = DeviceFacts(draw(st.sampled_from(["cpu", "cuda"])), 1 << 34, 4, draw(st.booleans()))
    both = (draw(teachers()), *([draw(teachers("two"))] if draw(st.booleans()) else []))
    return ScaleFacts(images, draw(st.integers(1, 5000)), False, both, student, device)


@settings(max_examples=40)
@given(facts(), st.sampled_from([None, 0.5, 50.0]), st.floats(0.1, 1e5))
def test_any_facts_give_valid_recipes_of_every_stage(scale: ScaleFacts, hours: float | None, rate: float) -> None:
    sized, _ = ruled_sizes(scale)
    second = ruled_recipe(2, sized, images_per_s=rate, hours=hours, fits=64)
    for ruled in (ruled_recipe(1, sized), second, ruled_recipe(3, sized, start=second)):
        recipe = ruled.recipe()
        assert recipe.run.steps >= 1000
        assert 32 <= recipe.run.batch_size <= 8192
        assert all(side % scale.student.patch_px == 0 for size in recipe.student.sizes_px for side in size_hw(size))
        teacher = min(sized.teachers, key=lambda one: one.cells)
        assert all(side % teacher.stride_px == 0 for size in recipe.teacher.sizes_px for side in size_hw(size))


def chosen(scale: ScaleFacts, store_bytes: int | None, hours: float | None, students: int) -> Choice | str:
    """What fits, or the words of the error."""
    try:
        return choose_within_budget(scale, store_bytes=store_bytes, hours=hours, student_images_per_s=100.0, students=students)
    except BadInput as error:
        return str(error)


@settings(max_examples=40)
@given(facts(), st.none() | st.floats(1e3, 1e13), st.none() | st.floats(0.01, 1e4), st.integers(1, 3))
def test_any_budget_gives_what_fits_or_an_error_that_names_the_least(
    scale: ScaleFacts, size: float | None, hours: float | None, students: int
) -> None:
    store_bytes = None if size is None else int(size)
    choice = chosen(scale, store_bytes, hours, students)
    if isinstance(choice, str):
        assert "the least" in choice
        return
    assert len(choice.explanation) == 3
    assert all(line and "\n" not in line for line in choice.explanation)
    assert store_bytes is None or choice.store_bytes <= store_bytes
    assert hours is None or (choice.hours or 0) <= hours * 1.001


@settings(max_examples=40)
@given(facts(), st.integers(1, 16))
def test_each_way_to_store_tokens_is_smaller_than_the_one_before(scale: ScaleFacts, views: int) -> None:
    sizes = [store_cost(scale, candidate).store_bytes for candidate in default_candidates(scale, views)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_proxys_grid_of_one_token_is_enlarged_to_what_students_take() -> None:
    teacher = TeacherFacts("tiny", 48, 48, (1, 1), 16)
    student = StudentFacts("vit-mini", "vit", 48, 2, 8, 100_000, 0.1)
    recipe = ruled_recipe(2, replace(ScaleFacts(10, 16, False, (teacher,), student))).recipe()
    assert recipe.student.sizes_px == (16,)
