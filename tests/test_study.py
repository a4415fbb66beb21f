"""The study's statistics against what is known of them, its rows at rest, its page, and the arms' pairs."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.pipeline.distillation.budget import STUDY
from eupe_pipeline.student.training.run_folder import load_student

from benchmarks.study import FOLDER, PAGE, missing, mixed_seeds, parsed, with_aliases
from benchmarks.study_arms import AGAINST, ARMS, CODECS_AND_VIEWS, SAME, VIEWS, Scale, Study
from benchmarks.study_table import (
    Interval,
    Row,
    by_arm,
    differences,
    interval,
    intervals,
    pilot_deviation,
    planned_half_width,
    read_rows,
    seen_difference,
    verdict,
    write_page,
    write_rows,
)

ROOT = Path(__file__).parents[1]
SCALE = {
    "images": 1600, "bank_images": 10_000, "test_images": 10_000, "steps": 800, "batch_size": 32, "size_px": 32, "teacher_px": 128,
}  # fmt: skip
NONE = {"linear_percent": 50.0, "cls_cosine": math.nan, "patch_cosine": 20.0, "mask_iou": 30.0}


def row(arm: str, seed: int, percent: float) -> Row:
    return Row(arm, seed, {"knn_percent": percent, **NONE}, 60.0, SCALE, "some CPU")


def test_an_interval_of_16_pairs_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = [found.low <= 0.3 <= found.high for found in (interval(random.normal(0.3, 1.0, 16), 1) for _ in range(200))]
    assert 0.91 <= np.mean(held) <= 0.99


def test_an_interval_of_many_lines_is_wider_and_of_alike_differences_has_no_width() -> None:
    drawn = np.random.default_rng(2).normal(0.0, 1.0, 16)
    assert interval(drawn, 10).half_width > 1.2 * interval(drawn, 1).half_width
    assert interval(np.zeros(5), 10) == Interval(0.0, 0.0, 0.0, 5)
    assert math.isnan(interval(drawn[:2], 10).low)


def test_few_pairs_have_student_s_interval() -> None:
    found = interval(np.array([0.42, 0.28, 0.34]), 1)
    assert found.half_width == pytest.approx(4.30265 * np.std([0.42, 0.28, 0.34], ddof=1) / np.sqrt(3), rel=1e-5)  # t of 2 degrees
    assert found.mean == pytest.approx((found.low + found.high) / 2)


def test_alike_differences_but_one_give_no_endless_interval() -> None:
    found = interval(np.array([0.1] * 15 + [0.3]), 10)
    assert found.mean - 5 < found.low < found.high < found.mean + 5


def test_the_interval_does_not_hang_on_the_order_in_which_students_were_measured() -> None:
    rows = [row("a", seed, float(seed % 3)) for seed in range(9)] + [row("b", seed, 1.0) for seed in reversed(range(8))]
    arms = by_arm(rows, "knn_percent")
    assert differences(arms, "a", "b").tolist() == [-1, 0, 1, -1, 0, 1, -1, 0]
    assert differences(arms, "a", "absent").size == 0


def test_students_of_two_kinds_of_cpu_are_no_pair() -> None:
    rows = [row("a", 0, 2.0), row("b", 0, 1.0), row("a", 1, 3.0), replace(row("b", 1, 1.0), processor="another CPU")]
    assert differences(by_arm(rows, "knn_percent"), "a", "b").tolist() == [1.0]


def test_a_study_that_goes_on_with_another_cpu_names_the_seeds_that_are_taken() -> None:
    rows = [row("int8", seed, 1.0) for seed in range(3)] + [replace(row("int8", 3, 1.0), processor="another CPU")]
    assert mixed_seeds(rows, [("fp32", seed) for seed in range(5)], "another CPU") == [0, 1, 2]
    assert mixed_seeds(rows, [("fp32", 3), ("int8", 4)], "another CPU") == []


def test_a_comparison_of_which_nothing_varies_says_nothing_of_the_power() -> None:
    rows = [row(arm, seed, float(seed % 3 if arm == "int8" else 1)) for arm in ("int8", "live", "fp32") for seed in range(4)]
    rows += [row("stage 3 cached", seed, 1 + 0.01 * (seed % 2)) for seed in range(4)]
    arms = by_arm(rows, "knn_percent")
    assert pilot_deviation(arms, {"int8": "fp32", "stage 3 cached": "fp32"}) == pilot_deviation(arms, {"int8": "fp32"})
    assert pilot_deviation(arms, {"int8": "fp32", "live": "fp32"}) == pilot_deviation(arms, {"int8": "fp32"}) > 0
    assert math.isnan(pilot_deviation(arms, {"live": "fp32"}))


def test_the_planned_width_is_student_s_and_a_difference_seen_in_four_of_five_is_larger() -> None:
    assert planned_half_width(1.0, 16, 1) == pytest.approx(2.13145 / 4, abs=1e-5)  # t of 15 degrees of freedom, two-sided 95 %
    assert seen_difference(1.0, 16, 1) == pytest.approx(0.75, abs=0.01)  # 16 pairs, alpha 0.05, power 0.8: d = 0.749 in tables


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 2.0, "helps"), (-2.0, -0.1, "hurts"), (-0.6, 0.5, "equal"), (-0.7, 0.5, "cannot tell")]
)
def test_a_verdict_follows_from_the_whole_interval(low: float, high: float, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 16)) == word


def test_rows_come_back_by_scale_and_a_figure_that_an_arm_lacks_stays_none(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "study.parquet"
    assert read_rows(path, SCALE) == []
    write_rows(path, [row("int8", 0, 31.5), Row("int8", 0, {"knn_percent": 1.0, **NONE}, 1.0, {**SCALE, "steps": 2}, "some CPU")])
    (found,) = read_rows(path, SCALE)
    assert (found.arm, found.measures["knn_percent"], found.scale) == ("int8", 31.5, SCALE)
    assert math.isnan(found.measures["cls_cosine"])


def test_rows_of_another_scale_stay_in_their_file(tmp_path: Path) -> None:
    path, larger = tmp_path / "study.parquet", {**SCALE, "size_px": 224, "teacher_px": 224}
    write_rows(path, [row("int8", 0, 31.5)])
    write_rows(path, [replace(row("int8", 0, 60.0), scale=larger)])
    write_rows(path, [])
    write_rows(path, [row("int8", 1, 32.5)])
    assert [one.measures["knn_percent"] for one in read_rows(path, SCALE)] == [31.5, 32.5]
    assert [one.measures["knn_percent"] for one in read_rows(path, larger)] == [60.0]


def test_two_studies_of_one_page_keep_each_other_s_rows_and_a_student_measured_again_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "study.parquet"
    write_rows(path, [row("fp32", 0, 30.0)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: write_rows(path, [row("int8", seed, float(seed))]), range(12)))
    write_rows(path, [row("fp32", 0, 31.0), replace(row("fp32", 0, 33.0), processor="another CPU")])
    found = {(one.arm, one.seed, one.processor): one.measures["knn_percent"] for one in read_rows(path, SCALE)}
    assert found == {
        ("fp32", 0, "some CPU"): 31.0, ("fp32", 0, "another CPU"): 33.0, **{("int8", seed, "some CPU"): float(seed) for seed in range(12)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size_px", "teacher_px", "grid", "sampled", "sizes_px"),
    [(32, 128, 4, 4, (24, 32, 40)), (224, 224, 7, 12, (160, 224, 288)), (64, 64, 2, 1, (32, 64, 96))],
)
def test_a_student_of_any_size_has_the_teachers_grid(
    size_px: int, teacher_px: int, grid: int, sampled: int, sizes_px: tuple[int, ...]
) -> None:
    scale = Scale(size_px=size_px, teacher_px=teacher_px)
    assert (scale.grid, scale.sampled_tokens, scale.sizes_px) == (grid, sampled, sizes_px)
    assert scale.student({"width": 64}).options["patch_px"] * grid == size_px


def test_all_of_cifar_at_224_px_is_one_command_with_as_many_epochs_and_a_page_of_its_own() -> None:
    own = ["--folder", "runs/study-gpu", "--out", "docs/results/study-gpu.md"]
    options, scale = parsed(["--images", "50000", "--size-px", "224", "--teacher-px", "224", "--batch-size", "256", *own])
    assert scale == Scale(50_000, 50_000, 10_000, 3125, 256, 224, 224)
    assert scale.steps * scale.batch_size / scale.images == Scale().steps * Scale().batch_size / Scale().images == 16
    assert len(missing(options, [])) == 16 * len(CODECS_AND_VIEWS)
    options, scale = parsed([])
    assert (options.folder, options.out, scale) == (FOLDER, PAGE, Scale())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "50000"], "give --out and --folder"),
        (["--images", "50000", "--out", "page.md"], "give --out and --folder"),
        (["--size-px", "33"], "got 128 and 33 px"),
        (["--teacher-px", "100"], "got 100 and 32 px"),
        (["--teacher-px", "32"], "got 32 and 32 px"),
        (["--images", "0"], "at least 1"),
        (["--arms", "int9"], "no arm 'int9'; there are 'fp32', 'fp16'"),
        (["--first-seed", "16"], "leaves no seed"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert message in capsys.readouterr().err


TINY = Scale(images=32, bank_images=40, test_images=40, steps=4, batch_size=16, size_px=64, teacher_px=64)


def test_at_another_size_live_targets_give_the_cached_student_and_the_folder_takes_no_other_scale(tmp_path: Path) -> None:
    study = Study(tmp_path, TINY)
    cached, live, nudged = (load_student(ARMS[arm](study, 1)).state_dict() for arm in ("fp32", "live", "fp32, nudged"))
    assert all(values.equal(live[name]) for name, values in cached.items())
    assert not all(values.equal(nudged[name]) for name, values in cached.items())
    assert cached["encoder.backbone.patch_embed.proj.weight"].shape[-1] == 32
    with pytest.raises(SystemExit, match=r"holds a study of Scale\(images=32.*steps=4.*Next: give another --folder"):
        Study(tmp_path, replace(TINY, steps=5))


def test_a_folder_of_before_scales_were_written_down_is_of_the_default(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(SystemExit, match=r"holds a study of Scale\(images=1600"):
        Study(tmp_path, TINY)
    assert json.loads((tmp_path / "scale.json").read_text()) == SCALE


def test_a_rerun_writes_the_page_anew_and_keeps_what_was_written_below_it(tmp_path: Path) -> None:
    page = tmp_path / "study.md"

    def study(percent: float) -> str:
        rows = [row(arm, seed, percent + shift + seed % 2) for seed in range(4) for arm, shift in (("fp32", 1.0), ("1 view", 0.0))]
        write_page(rows, {"1 view": "fp32"}, {"1 view": 1}, page, "make study")
        return page.read_text()

    first = study(30.25)
    assert "| 1 view | 4 | 30.75 ± 0.58 | 50.00 ± 0.00 | – |" in first
    assert "| 1 view | fp32 | 4 | -1.00 [-1.00, -1.00] | +0.00 [+0.00, +0.00] | – |" in first
    assert "| hurts |" in first
    assert "| 1 | +1.00 [+1.00, +1.00] | ██████████ |" in first
    words = "\n## What it says\n\n- **By hand**: 30.75 ± 0.58 stays.\n\n## And more\n\nwords\n"
    page.write_text(first + words)
    assert study(40.25) == first.replace("30.75", "40.75").replace("31.75", "41.75") + words


def test_every_arm_that_is_compared_is_there() -> None:
    arms = ARMS.keys() | SAME.keys()
    assert AGAINST.keys() | set(AGAINST.values()) | set(CODECS_AND_VIEWS) | set(SAME.values()) <= arms
    assert VIEWS.keys() <= AGAINST.keys()


def test_a_budget_says_what_the_rows_of_the_study_say() -> None:
    found = intervals(with_aliases(read_rows(ROOT / "docs" / "results" / "study.parquet", asdict(Scale()))), AGAINST)
    for name, lost in STUDY.items():
        kept = found[name, AGAINST[name]]["knn_percent"]
        assert (lost.points, lost.low, lost.high) == pytest.approx((-kept.mean, -kept.high, -kept.low), abs=0.0051), name
        assert lost.pairs == kept.pairs, name
