"""Draws are pure functions of their arguments, uniform, and independent by purpose."""

from collections import Counter

from eupe_pipeline.student.model.draws import bits64, choose_size, dropped_teachers, step_seed

SIZES = (256, 384, 512)


def test_the_same_arguments_draw_the_same_value_for_ever() -> None:
    assert bits64(3, "size:student", 17) == bits64(3, "size:student", 17) == RECORDED


RECORDED = 17980725810786829374


def test_numbers_do_not_run_into_each_other() -> None:
    assert bits64(1, "a", 1, 23) != bits64(1, "a", 12, 3)
    assert bits64(11, "a", 2) != bits64(1, "1a", 2)


def test_each_size_comes_about_equally_often() -> None:
    counts = Counter(choose_size(0, "student", step, SIZES) for step in range(3000))
    assert set(counts) == set(SIZES)
    assert min(counts.values()) > 900


def test_student_and_teacher_draw_independently() -> None:
    pairs = Counter((choose_size(0, "student", step, SIZES), choose_size(0, "teacher", step, SIZES)) for step in range(4500))
    assert len(pairs) == 9
    assert min(pairs.values()) > 400


def test_one_size_is_always_that_size() -> None:
    assert {choose_size(5, "student", step, (64,)) for step in range(50)} == {64}


def test_step_seeds_differ_by_step_and_rank_and_fit_torch() -> None:
    seeds = {step_seed(1, step, rank) for step in range(100) for rank in range(4)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_teachers_are_dropped_as_often_as_asked_and_never_all() -> None:
    names = ["a", "b", "c"]
    drawn = [dropped_teachers(3, step, names, 0.5) for step in range(2000)]
    assert all(len(one) < 3 for one in drawn)
    assert 0.4 < sum("a" in one for one in drawn) / 2000 < 0.5  # a little less than 0.5: somebody always stays
    assert dropped_teachers(3, 0, names, 0.0) == dropped_teachers(3, 0, ["a"], 0.99) == frozenset()
