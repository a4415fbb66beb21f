"""Recipes by rule: at the paper's scale they are near the paper's, at the demonstration's near its own, and files read back the same."""

from dataclasses import replace
from pathlib import Path

import pytest
from eupe_pipeline.pipeline.distillation.facts import DeviceFacts, ScaleFacts, StudentFacts, TeacherFacts
from eupe_pipeline.pipeline.distillation.rules import Ruled, ruled_proxy, ruled_recipe, ruled_sizes, ruled_views, run_length, write_recipe
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.pipeline.recipes.views import chosen_views
from eupe_pipeline.storage.core.errors import BadInput

H100 = DeviceFacts("cuda", 80 << 30, 64, True, "H100")
LITE0 = TeacherFacts("efficientnet-lite0", 1280, 1280, (7, 7), 224)
PROXY = TeacherFacts("proxy", 1536, 1536, (16, 16), 256, 1_890_000_000, is_proxy=True)
VIT_T = StudentFacts("eupe_vitt16", "vit", 192, 12, 16, 5_492_160, 1e-5)
VIT_B = StudentFacts("eupe_vitb16", "vit", 768, 12, 16, 85_669_632, 1e-5)
PAPER = ScaleFacts(1_690_280_000, 500, False, (PROXY,), VIT_B, H100)
DEMO = ruled_sizes(ScaleFacts(10_000, 32, True, (LITE0,), VIT_T))[0]


def within(factor: float, got: float, wanted: float) -> bool:
    return wanted / factor <= got <= wanted * factor


@pytest.mark.parametrize("stage", [2, 3])
def test_at_the_papers_scale_every_value_is_near_the_papers(stage: int) -> None:
    papers = load_recipe(f"eupe-stage{stage}").recipe
    recipe = ruled_recipe(stage, PAPER).recipe()
    assert within(1.05, recipe.run.steps, papers.run.steps)
    assert recipe.run.batch_size == papers.run.batch_size
    assert within(1.5, recipe.optimizer.learning_rate, papers.optimizer.learning_rate)
    for key in ("name", "weight_decay", "beta1", "beta2", "warmup_share", "final_learning_rate", "clip_norm", "decayed"):
        assert getattr(recipe.optimizer, key) == getattr(papers.optimizer, key), key
    assert recipe.adapter == papers.adapter
    assert recipe.teacher == papers.teacher
    assert recipe.student.sizes_px == papers.student.sizes_px
    assert recipe.run.prefetch_megabytes == papers.run.prefetch_megabytes
    assert recipe.views.photometric == papers.views.photometric
    assert recipe.views.scale == papers.views.scale


def test_at_the_papers_scale_a_students_blocks_start_as_the_official_code_has_them() -> None:
    recipe = ruled_recipe(2, PAPER).recipe()
    assert recipe.student.options == {}
    assert recipe.student.initial_weights == "official"
    assert recipe.views.views_per_image == load_recipe("eupe-stage2").recipe.views.views_per_image


def test_at_the_papers_scale_stage_1_has_lamb_and_the_teachers_width() -> None:
    papers = load_recipe("eupe-stage1").recipe
    teachers = (TeacherFacts("pecore-g", 1536, 1536, (32, 32), 448), TeacherFacts("dinov3-h+", 1280, 1280, (16, 16), 256))
    proxy = StudentFacts("proxy-1.9b", "vit", 1536, 40, 16, 1_890_000_000, 1e-5)
    recipe = ruled_recipe(1, replace(PAPER, teachers=teachers, student=proxy), batch_size=1024).recipe()
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == (papers.optimizer.name, papers.optimizer.learning_rate)
    assert recipe.optimizer.weight_decay == papers.optimizer.weight_decay
    assert recipe.adapter == papers.adapter
    assert recipe.student.sizes_px == papers.student.sizes_px


def test_at_the_demonstrations_scale_the_rule_gives_the_demonstrations_values() -> None:
    demo = load_recipe("demo", stage=2).recipe
    recipe = ruled_recipe(2, DEMO, steps=1250).recipe()
    assert DEMO.teachers[0].size_px == 128
    assert recipe.run.batch_size == demo.run.batch_size
    assert recipe.optimizer.learning_rate == demo.optimizer.learning_rate
    assert recipe.student.options == demo.student.options
    assert recipe.student.sizes_px == demo.student.sizes_px
    assert recipe.views.photometric == demo.views.photometric
    assert within(1.02, recipe.optimizer.beta2, demo.optimizer.beta2)


def test_a_stage_3_keeps_the_model_and_the_views_of_the_run_that_it_starts_from() -> None:
    second = ruled_recipe(2, PAPER)
    third = ruled_recipe(3, PAPER, start=second).recipe()
    assert third.run.steps < 100_000, "short of what the official layer scale wants, were it not for the run before"
    assert third.student.options == second.recipe().student.options
    assert third.student.initial_weights == second.recipe().student.initial_weights
    assert third.adapter == second.recipe().adapter
    assert third.views == second.recipe().views


def test_an_input_that_is_no_square_gives_its_shape_to_all_inputs_and_to_the_crops() -> None:
    asked, other = LITE0.at_size((384, 512)), TeacherFacts("dinov3-h+", 1280, 1280, (16, 16), 256, images_per_s=12.0)
    assert (asked.grid, asked.stride_px, asked.cells) == ((12, 16), 32, 192)
    facts, reasons = ruled_sizes(ScaleFacts(10_000, 400, False, (other, asked), VIT_T, H100), ["efficientnet-lite0"])
    assert [teacher.size_px for teacher in facts.teachers] == [(256, 336), (384, 512)]  # 341 px in strides of 16
    assert facts.teachers[0].grid == (16, 21)
    assert facts.teachers[0].images_per_s == pytest.approx(12 * 256 / 336)
    assert "1.33 times as wide as high" in reasons["dinov3-h+"]
    second = ruled_recipe(2, facts, steps=1000)
    assert second.recipe().student.sizes_px == ((192, 256),)  # the grid of 12 × 16 in patches of 16 px
    third = ruled_recipe(3, facts, steps=1000, start=second)
    assert third.recipe().student.sizes_px == ((192, 256), (288, 384), (384, 512))
    assert third.recipe().teacher.sizes_px == ((384, 512), (576, 768), (768, 1024))
    assert ruled_views(ScaleFacts(10, 400, False, (asked,), VIT_T))[0].ratio == (1.0, 1.77778)
    tall = ruled_sizes(ScaleFacts(10, 8, False, (LITE0.at_size((64, 32)),), VIT_T))[0]
    assert tall.teachers[0].size_px == (64, 32)


def test_a_recipe_of_oblong_inputs_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    facts = ScaleFacts(10_000, 400, False, (LITE0.at_size((384, 512)),), VIT_T, H100)
    second = ruled_recipe(2, facts, steps=1000)
    stages = {2: second, 3: ruled_recipe(3, facts, steps=1000, start=second)}
    write_recipe(tmp_path / "own.toml", stages, {"teachers": ["x"], "teacher_sizes_px": {"x": (384, 512)}})
    for stage, ruled in stages.items():
        assert load_recipe(str(tmp_path / "own.toml"), stage=stage).recipe == ruled.recipe()


def test_more_photos_are_looked_at_more_in_all_and_less_often_each() -> None:
    lengths = [run_length(2, replace(DEMO, images=images)).samples for images in (10**3, 10**4, 10**5, 10**6, 10**9)]
    assert lengths == sorted(lengths)
    epochs = [samples / images for samples, images in zip(lengths, (10**3, 10**4, 10**5, 10**6, 10**9), strict=True)]
    assert epochs == sorted(epochs, reverse=True)


def test_a_night_bounds_a_run_on_a_cpu_and_hours_bound_it_anywhere() -> None:
    assert run_length(2, DEMO, images_per_s=100.0).samples == pytest.approx(8 * 3600 * 100, rel=0.01)
    assert run_length(2, DEMO, images_per_s=100.0, hours=2.0).samples == pytest.approx(2 * 3600 * 100, rel=0.01)
    on_gpu = replace(DEMO, device=H100)
    assert run_length(2, on_gpu, images_per_s=100.0).samples == run_length(2, on_gpu).samples
    assert "2 hours" in run_length(2, DEMO, images_per_s=100.0, hours=2.0).why_steps


def test_few_photos_and_few_hours_have_the_least_steps() -> None:
    one = run_length(2, replace(DEMO, images=1))
    assert (one.steps, one.batch_size) == (1000, 32)
    assert run_length(2, DEMO, images_per_s=1.0, hours=0.1).steps == 1000


def test_a_batch_that_memory_does_not_hold_goes_in_parts() -> None:
    ruled = ruled_recipe(2, DEMO, steps=20_000, fits=64)
    assert (ruled.recipe().run.batch_size, ruled.recipe().run.accumulate) == (512, 8)
    assert "64 views" in ruled.reasons["run.accumulate"]
    assert ruled_recipe(2, DEMO, steps=20_000, fits=512).recipe().run.accumulate == 1


def test_a_students_grid_is_its_coarsest_teachers_where_its_input_allows() -> None:
    teachers = (LITE0, TeacherFacts("dinov3-h+", 1280, 1280, (16, 16), 256))
    assert ruled_recipe(2, ScaleFacts(1000, 500, False, teachers, VIT_T)).recipe().student.sizes_px == (112,)
    convnext = StudentFacts("eupe_convnext_tiny", "convnext", 768, 18, 32, 27_820_128, 1e-6)
    assert ruled_recipe(2, ScaleFacts(1000, 500, False, (PROXY,), convnext)).recipe().student.sizes_px == (256,)


def test_teachers_that_were_asked_for_at_a_size_keep_it() -> None:
    facts = ScaleFacts(1000, 32, False, (LITE0,), VIT_T)
    assert ruled_sizes(facts)[0].teachers[0].grid == (4, 4)
    assert ruled_sizes(facts, asked=["efficientnet-lite0"])[0] == facts
    assert ruled_sizes(replace(facts, median_side_px=500))[0].teachers[0].size_px == 224


def test_a_proxy_is_several_times_its_student_or_none() -> None:
    assert (ruled_proxy(DEMO.student, DEMO.device) or ("", ""))[0] == "eupe_vits16"
    assert (ruled_proxy(PAPER.student, PAPER.device) or ("", ""))[0] == "proxy-1.9b"
    assert ruled_proxy(VIT_B, DEMO.device) is None


def test_small_photos_are_not_distorted_and_a_photo_has_a_view_for_every_hundred_looks() -> None:
    assert ruled_views(DEMO)[0].photometric == "none"
    assert ruled_views(PAPER)[0].photometric == "teacher_same"
    assert [ruled_views(DEMO, epochs=epochs)[0].views_per_image for epochs in (0.5, 4, 100, 400, 3000)] == [1, 2, 2, 4, 16]
    assert ruled_views(DEMO, views_per_image=3)[0].views_per_image == 3


def both(facts: ScaleFacts) -> dict[int, Ruled]:
    second = ruled_recipe(2, facts)
    return {2: second, 3: ruled_recipe(3, facts, start=second)}


@pytest.mark.parametrize("facts", [PAPER, DEMO], ids=["paper", "demo"])
def test_a_written_recipe_reads_back_to_the_same_values_and_origins(tmp_path: Path, facts: ScaleFacts) -> None:
    ruled = both(facts)
    file = tmp_path / "runs" / "recipe.toml"
    write_recipe(file, ruled, {"teachers": ["dinov3-h+"], "teacher_sizes_px": {"dinov3-h+": 256}}, {"teachers": "ours: asked for"})
    for stage, one in ruled.items():
        assert load_recipe(str(file), stage=stage) == one.resolved("recipe.toml")
    assert chosen_views(str(file))[0] == ruled[2].views
    assert '"dinov3-h+" = 256' in file.read_text()


def test_every_value_that_a_rule_sets_has_a_reason_of_ours() -> None:
    for one in (*both(PAPER).values(), *both(DEMO).values()):
        assert {key for key in one.values if key not in one.reasons} == set()
        assert all(reason.startswith("ours: ") and "\n" not in reason for reason in one.reasons.values())


def test_what_is_no_fact_is_refused() -> None:
    with pytest.raises(BadInput, match="number of photos is 0"):
        replace(DEMO, images=0)
    with pytest.raises(BadInput, match="teachers is"):
        replace(DEMO, teachers=())
    with pytest.raises(BadInput, match="stage 4 has no recipe"):
        ruled_recipe(4, DEMO)
    with pytest.raises(BadInput, match="given as that of stage 3"):
        write_recipe(Path("never.toml"), {3: ruled_recipe(2, DEMO)})


def test_adapters_are_never_narrower_than_the_teacher() -> None:
    widths = [ruled_recipe(2, replace(DEMO, student=replace(VIT_T, width=width))).recipe().adapter.width for width in (64, 192, 384, 768)]
    assert widths == [1280, 1280, 1536, 2560]
