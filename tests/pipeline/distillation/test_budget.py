"""A budget chooses what fits, says why in three lines, and an impossible one says the least that would do."""

import re
from dataclasses import replace

import pytest
from eupe_pipeline.pipeline.distillation.budget import (
    FIDELITY,
    STUDY,
    Candidate,
    choose_within_budget,
    default_candidates,
    in_bytes,
    in_hours,
    store_cost,
)
from eupe_pipeline.pipeline.distillation.facts import ScaleFacts, StudentFacts, TeacherFacts
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.layout import FeatureLayout

LITE0 = TeacherFacts("efficientnet-lite0", 1280, 1280, (4, 4), 128, images_per_s=100.0)
VIT_T = StudentFacts("eupe_vitt16", "vit", 192, 12, 16, 5_492_160, 1e-5)
FACTS = ScaleFacts(10_000, 32, True, (LITE0,), VIT_T)
RATE = 130.0


def test_without_limits_nothing_is_given_up() -> None:
    choice = choose_within_budget(FACTS)
    assert (choice.candidate.codec, choice.candidate.tokens_per_view, choice.candidate.views_per_image) == ("int8", None, 16)
    assert choice.explanation[1] == "given up: nothing"
    assert choice.hours is None


def test_bytes_are_those_of_the_layout_of_every_view_and_the_views_themselves() -> None:
    row = FeatureLayout(1280, 1280, (4, 4), "int8").view_bytes + 80
    assert store_cost(FACTS, Candidate(2)).store_bytes == 2 * 10_000 * row
    assert store_cost(FACTS, Candidate(2)).hours == pytest.approx(20_000 / 100 / 3600)


def test_a_smaller_budget_gives_up_views_then_the_codec_then_the_last_view_then_tokens() -> None:
    costs = [store_cost(FACTS, candidate).store_bytes for candidate in default_candidates(FACTS, 8)]
    assert costs == sorted(costs, reverse=True)
    chosen = [choose_within_budget(FACTS, store_bytes=size, student_images_per_s=RATE).candidate for size in costs[1:]]
    assert [(one.views_per_image, one.tokens_per_view, one.codec) for one in chosen] == [
        (4, None, "int8"), (2, None, "int8"), (2, None, "int4"), (1, None, "int4"), (1, 8, "int4"), (1, 4, "int4"), (1, 1, "int4"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [10**9, 3 * 10**8, 10**8, 5 * 10**7])
@pytest.mark.parametrize("hours", [24.0, 6.0, 1.0])
def test_what_is_chosen_fits_and_uses_the_hours(size: int, hours: float) -> None:
    choice = choose_within_budget(FACTS, store_bytes=size, hours=hours, student_images_per_s=RATE)
    assert choice.store_bytes <= size
    assert choice.hours is not None
    assert 0.98 * hours <= choice.hours <= hours
    assert choice.length.steps >= 1000


def test_several_students_share_the_hours() -> None:
    one = choose_within_budget(FACTS, hours=6.0, student_images_per_s=RATE)
    two = choose_within_budget(FACTS, hours=6.0, student_images_per_s=RATE, students=2)
    assert two.length.samples == pytest.approx(one.length.samples / 2, rel=0.05)
    assert two.hours is not None
    assert two.hours <= 6.0


def test_a_slow_teacher_gets_fewer_views_so_that_it_takes_at_most_half_of_the_hours() -> None:
    slow = replace(FACTS, teachers=(replace(LITE0, images_per_s=1.0),))
    choice = choose_within_budget(slow, hours=12.0, student_images_per_s=RATE)
    assert choice.candidate.views_per_image == 2
    assert choice.extraction_hours == pytest.approx(20_000 / 3600)
    tight = choose_within_budget(slow, hours=3.0, student_images_per_s=RATE)
    assert tight.candidate.views_per_image == 1


def test_three_lines_say_what_was_chosen_what_it_cost_and_what_would_go_next() -> None:
    first, second, third = choose_within_budget(FACTS, store_bytes=6 * 10**7, hours=2.0, student_images_per_s=RATE).explanation
    assert re.match(r"chosen: 1 view a photo, 4 patch tokens, int4: 56MB of 60MB, 0\.028 h of teachers and 2 h of training of 2 h; ", first)
    assert f"4 → 1 views (students against fresh views: {STUDY['1 view'].text()})" in second
    assert f"all → 4 patch tokens (students of a quarter of them: {STUDY['a quarter of the tokens'].text()})" in second
    assert re.search(r"int8 → int4 \(cosine 0.991; students: [+-][0-9.]+ \[[+-][0-9.]+, [+-][0-9.]+\] points of kNN, \d+ pairs\)", second)
    assert third == "kept: int4 keeps a cosine of 0.991 (1st percentile 0.983); next to go: 1 view a photo, 1 patch token, int4"


def test_tokens_are_never_sampled_where_the_grids_differ_and_then_the_grid_goes_last() -> None:
    other = TeacherFacts("dinov3-h+", 1280, 1280, (16, 16), 256, images_per_s=10.0)
    candidates = default_candidates(replace(FACTS, median_side_px=500, teachers=(LITE0, other)), 4)
    assert {one.tokens_per_view for one in candidates} == {None}
    assert candidates[-1] == Candidate(1, None, "int4", (2, 2))


def test_too_small_a_budget_says_the_least_that_would_fit_and_that_fits() -> None:
    with pytest.raises(BadInput, match="--budget 30MB: the least that holds 10,000 photos is") as error:
        choose_within_budget(FACTS, store_bytes=30 * 10**6)
    least = re.search(r"photos is (\d+)MB", str(error.value))
    assert least is not None
    assert choose_within_budget(FACTS, store_bytes=int(least[1]) * 10**6).candidate == Candidate(1, 1, "int4")
    with pytest.raises(BadInput):
        choose_within_budget(FACTS, store_bytes=(int(least[1]) - 1) * 10**6)


def test_too_few_hours_say_the_least_that_would_fit_and_that_fits() -> None:
    with pytest.raises(BadInput, match=r"--hours 0\.05: the least is") as error:
        choose_within_budget(FACTS, hours=0.05, student_images_per_s=RATE)
    least = re.search(r"the least is ([\d.]+) h", str(error.value))
    assert least is not None
    choice = choose_within_budget(FACTS, hours=float(least[1]), student_images_per_s=RATE)
    assert choice.candidate.views_per_image == 1
    assert 1000 <= choice.length.steps <= 1050


def test_the_hours_that_are_proposed_fit_where_the_next_call_measures_slower() -> None:
    with pytest.raises(BadInput, match="each call measures speeds anew") as error:
        choose_within_budget(FACTS, hours=0.05, student_images_per_s=RATE)
    proposed = re.search(r"anew, and --hours ([\d.]+) leaves room", str(error.value))
    assert proposed is not None
    slower = replace(FACTS, teachers=tuple(replace(teacher, images_per_s=(teacher.images_per_s or 0) / 1.4) for teacher in FACTS.teachers))
    choice = choose_within_budget(slower, hours=float(proposed[1]), student_images_per_s=RATE / 1.4)
    assert choice.length.steps >= 1000


def test_an_impossible_plan_names_both_limits() -> None:
    with pytest.raises(BadInput, match=r"--budget 1kB: .* and --hours 0.01: "):
        choose_within_budget(FACTS, store_bytes=1000, hours=0.01, student_images_per_s=RATE)


@pytest.mark.parametrize(("limits", "why"), [
    ({"store_bytes": 0}, "a budget of 0 bytes holds nothing"),
    ({"hours": 0.0}, "hours hold nothing"),
    ({"hours": float("nan")}, "hours hold nothing"),
    ({"hours": 1.0}, "that of the student was not"),
])  # fmt: skip
def test_limits_that_cannot_be_kept_are_refused(limits: dict[str, float], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        choose_within_budget(FACTS, **limits)  # type: ignore[arg-type]


def test_hours_want_the_speed_of_each_teacher() -> None:
    unmeasured = replace(FACTS, teachers=(replace(LITE0, images_per_s=None),))
    with pytest.raises(BadInput, match="that of efficientnet-lite0 was not"):
        choose_within_budget(unmeasured, hours=1.0, student_images_per_s=RATE)


def test_the_fidelity_is_what_the_benchmark_wrote() -> None:
    import json
    from pathlib import Path

    figures = json.loads((Path(__file__).parents[3] / "docs" / "results" / "bench-codec.json").read_text())["figures"]
    for codec in ("int8", "int4"):
        assert FIDELITY[codec].p1 == pytest.approx(figures[f"store.{codec}_cosine_p1"]["value"], abs=1e-3)
        assert FIDELITY[codec].bytes_over_fp16 == pytest.approx(figures[f"store.{codec}_bytes/fp16"]["value"], abs=1e-3)


def test_sizes_and_hours_are_short_and_never_rounded_below_what_is_needed() -> None:
    assert [in_bytes(size, up=True) for size in (999, 1001, 33_333_333, 1_234_567_890_123)] == ["999B", "1.1kB", "34MB", "1.3TB"]
    assert [in_hours(hours) for hours in (0.0, 0.0871, 5.01, 123.0)] == ["0 h", "0.088 h", "5.1 h", "130 h"]
