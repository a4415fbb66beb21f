"""The losses by name against slow formulas in numpy's float64, with their gradients; and nothing of them in a recipe that names none."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.choices import CLASS_LOSSES, NAMED_LOSSES
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.draws import draw_shift
from eupe_pipeline.student.model.grids import NO_SHIFT, most_shifted, overlap, shift_pixels, smallest_shift
from eupe_pipeline.student.model.losses import (
    LOSSES,
    ClassSpace,
    align_grids,
    angle_loss,
    angular_dispersion,
    cls_loss,
    described,
    distillation_loss,
    patch_loss,
    relation_loss,
    shift_loss,
    teacher_terms,
)
from eupe_pipeline.student.model.recipe import LossConfig, StudentConfig, TeacherWeights, TrainRecipe
from eupe_pipeline.student.model.student import TargetSpec, refuse_losses
from eupe_pipeline.teachers.encoders.tokens import SampledTokens, Tokens
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
PAPER = LossConfig()


def tokens(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def cosine(one: Floats, other: Floats) -> float:
    dot = math.fsum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in one.tolist()) * math.fsum(b * b for b in other.tolist()))


def slow_relation(student: Floats, teacher: Floats) -> float:
    """Image by image and pair by pair."""
    images, count = student.shape[:2]
    squares = [
        (cosine(student[b, i], student[b, j]) - cosine(teacher[b, i], teacher[b, j])) ** 2
        for b in range(images) for i in range(count) for j in range(count) if i != j
    ]  # fmt: skip
    return math.fsum(squares) / len(squares)


def slow_dispersion(teacher: Floats, weights: Floats) -> float:
    unit = [token / math.sqrt(math.fsum((token * token).tolist())) for token in teacher]
    mean = np.asarray(sum(weight * token for weight, token in zip(weights, unit, strict=True))) / weights.sum()
    squares = [weight * math.acos(cosine(token, mean)) ** 2 for weight, token in zip(weights, unit, strict=True)]
    return math.fsum(squares) / float(weights.sum())


def slow_angle(student: Floats, teacher: Floats, dispersion: float) -> float:
    return math.fsum(math.acos(cosine(s, t)) ** 2 for s, t in zip(student, teacher, strict=True)) / len(student) / dispersion


def slow_shift(student: Floats, teacher: Floats, shift: tuple[int, int], config: LossConfig) -> float:
    """Grids of one size: the student's token (r, c) sees what lies at (r + rows, c + columns) of the teacher's view."""
    (images, height, width, _), cosines, smooth = student.shape, [], []
    for b, row, column in itertools.product(range(images), range(height), range(width)):
        there = row + shift[0], column + shift[1]
        if 0 <= there[0] < height and 0 <= there[1] < width:
            s, t = student[b, row, column], teacher[b, there[0], there[1]]
            cosines.append(1 - cosine(s, t))
            gaps, beta = np.abs(s - t), config.smooth_l1_beta
            smooth += np.where(gaps < beta, 0.5 * gaps**2 / beta, gaps - beta / 2).tolist()
    return config.patch_cosine * math.fsum(cosines) / len(cosines) + config.patch_smooth_l1 * math.fsum(smooth) / len(smooth)


SHIFTS = [(0, 0), (1, 0), (-1, 2), (2, -1)]
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Floats, Floats], float], tuple[int, ...], tuple[int, ...]]] = {
    "relation": (relation_loss, slow_relation, (2, 5, 7), (2, 5, 7)),
    "relation of unequal widths": (relation_loss, slow_relation, (2, 4, 3), (2, 4, 9)),
    "angle": (lambda s, t: angle_loss(s, t, 0.694), lambda s, t: slow_angle(s, t, 0.694), (4, 6), (4, 6)),
    **{
        f"shift {shift}": (
            lambda s, t, shift=shift: shift_loss(s, t, shift, PAPER), lambda s, t, shift=shift: slow_shift(s, t, shift, PAPER),  # type: ignore[misc]
            (2, 4, 5, 3), (2, 4, 5, 3),
        )
        for shift in SHIFTS
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_those_of_the_slow_formula(name: str) -> None:
    fast, slow, of_student, of_teacher = CASES[name]
    student, teacher = tokens(*of_student), tokens(*of_teacher, seed=1)
    assert float(fast(torch.from_numpy(student), torch.from_numpy(teacher))) == pytest.approx(slow(student, teacher), rel=1e-12)
    moving = torch.from_numpy(student).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: fast(s, torch.from_numpy(teacher)), (moving,))
    half = torch.from_numpy(student).bfloat16(), torch.from_numpy(teacher).float()
    assert torch.equal(fast(*half), fast(half[0].float(), half[1]))
    assert float(fast(half[0].float(), half[1])) == pytest.approx(slow(half[0].double().numpy(), half[1].double().numpy()), rel=1e-4)


def test_the_spread_of_class_tokens_is_that_of_the_slow_formula() -> None:
    cone, weights = tokens(9, 5) * 0.3 + np.array([2.0, 0, 0, 0, 0]), np.random.default_rng(3).uniform(0.1, 1, 9)
    assert angular_dispersion(torch.from_numpy(cone), torch.from_numpy(weights)) == pytest.approx(slow_dispersion(cone, weights), rel=1e-12)


def test_a_student_that_knows_the_mean_direction_alone_has_an_angle_loss_of_one_however_narrow_the_cone() -> None:
    for narrow in (0.05, 0.3, 3.0):
        cone = torch.from_numpy(tokens(50, 8) * narrow + np.eye(8)[0])
        spread = angular_dispersion(cone, torch.ones(50))
        mean = torch.nn.functional.normalize(cone, dim=-1).mean(dim=0).expand_as(cone)
        assert float(angle_loss(mean, cone, spread)) == pytest.approx(1.0, rel=1e-9)


def test_the_angles_gradient_is_finite_where_tokens_agree_and_where_they_are_opposite() -> None:
    for other in (1.0, -1.0):
        student = torch.tensor([[3.0, 4.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(angle_loss(student, other * torch.tensor([[6.0, 8.0]]), 1.0), student)
        assert torch.isfinite(gradient).all()


def test_relations_of_a_sample_are_an_unbiased_estimate() -> None:
    student, teacher = torch.from_numpy(tokens(1, 6, 4)), torch.from_numpy(tokens(1, 6, 4, seed=1))
    samples = [relation_loss(student[:, list(some)], teacher[:, list(some)]) for some in itertools.combinations(range(6), 3)]
    assert float(torch.stack(samples).mean()) == pytest.approx(float(relation_loss(student, teacher)), rel=1e-12)


@pytest.mark.parametrize(("student", "teacher", "shift"), [
    ((8, 8), (4, 4), (1, -1)), ((8, 8), (16, 16), (-1, 1)), ((12, 8), (6, 16), (2, 1)), ((12, 12), (18, 18), (2, -2)),
    ((4, 4), (4, 4), (0, 1)),
])  # fmt: skip
def test_grids_of_unequal_size_overlap_where_their_patches_see_the_same_pixels(
    student: tuple[int, int], teacher: tuple[int, int], shift: tuple[int, int]
) -> None:
    """Tokens that are the place of their patch's centre in the view: bicubic interpolation nearly keeps them so."""

    def places(grid: tuple[int, int], moved: tuple[int, int]) -> Tensor:
        rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 + step for side, step in zip(grid, moved, strict=True))
        return torch.stack(torch.meshgrid(rows / grid[0], columns / grid[1], indexing="ij"), dim=-1)[None]

    seen, target = overlap(places(student, shift), places(teacher, (0, 0)), shift)
    sides = [(max(s, t) * (s - abs(step))) // s for s, t, step in zip(student, teacher, shift, strict=True)]
    assert seen.shape == target.shape == (1, *sides, 2)
    apart = (seen - target).abs().flatten()
    assert float(apart.median()) < 0.02  # less than half a token of the finest grid: torch's kernel bends a line a little
    assert float(apart.max()) < 0.5 / min(*student, *teacher)  # half a token of the coarsest at the border


def test_the_smallest_shift_is_whole_in_all_grids() -> None:
    assert [smallest_shift(16, [grid]) for grid in (8, 14, 16, 32, 24, 18)] == [1, 1, 1, 1, 2, 8]
    assert smallest_shift(12, [16, 18]) == 6
    assert (most_shifted(16), most_shifted(3)) == (4, 0)


def test_a_shifted_window_shows_the_pixels_further_on_and_repeats_the_border() -> None:
    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1)
    assert shift_pixels(pixels, (1, 0))[0, :, :, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]
    assert shift_pixels(pixels, (0, -2))[0, :, :, 0].tolist() == [[0, 0, 0, 1], [4, 4, 4, 5], [8, 8, 8, 9]]
    assert shift_pixels(pixels, NO_SHIFT) is pixels


def test_a_model_that_moves_with_its_window_has_no_shift_loss() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8))
    embed = torch.nn.Conv2d(3, 5, 4, stride=4).double().requires_grad_(False)

    def model(pixels_BHWC: Tensor) -> Tensor:
        found: Tensor = embed(pixels_BHWC.permute(0, 3, 1, 2).double()).permute(0, 2, 3, 1)
        return found

    for rows, columns in ((1, 0), (-1, 1), (0, -1)):
        moved = model(shift_pixels(pixels, (4 * rows, 4 * columns)))
        assert float(shift_loss(moved, model(pixels), (rows, columns), PAPER)) == pytest.approx(0, abs=1e-12)
        assert float(shift_loss(moved, model(pixels), (-rows, -columns), PAPER)) > 1e-4


def test_shifts_are_drawn_by_seed_step_and_axis_within_bounds() -> None:
    drawn = [draw_shift(3, step, axis, 0.5, 1, 4) for axis in (0, 1) for step in range(2000)]
    assert drawn == [draw_shift(3, step, axis, 0.5, 1, 4) for axis in (0, 1) for step in range(2000)]
    assert drawn[:2000] != drawn[2000:]
    assert np.mean(np.array(drawn) == 0) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.03)  # a normal number below one deviation
    assert abs(np.mean(drawn)) < 0.05
    wide = {draw_shift(3, step, 0, 8.0, 2, 5) for step in range(500)}
    assert wide == {-4, -2, 0, 2, 4}


def test_the_default_is_the_papers_loss_to_the_bit() -> None:
    student = {name: Tokens(torch.randn(3, 8), torch.randn(3, 4, 4, 8, requires_grad=True)) for name in "ab"}
    targets = {"a": Tokens(torch.randn(3, 8), torch.randn(3, 2, 2, 8)), "b": Tokens(None, torch.randn(3, 6, 6, 8))}
    weights = {"b": TeacherWeights(1.0, 0.7)}
    total, terms = distillation_loss(student, targets, LossConfig(), weights)
    a, b = (patch_loss(*align_grids(student[name].patch_BHWD, targets[name].patch_BHWD), LossConfig()) for name in "ab")
    assert student["a"].cls_BD is not None
    assert targets["a"].cls_BD is not None
    expected = torch.as_tensor(0.0 + 1.0 * cls_loss(student["a"].cls_BD, targets["a"].cls_BD) + 1.0 * a + 0.7 * b)
    assert torch.equal(total, expected)
    assert {name: set(of) for name, of in terms.items()} == {"a": {"cls", "patch"}, "b": {"patch"}}
    ours = torch.autograd.grad(total, [student["a"].patch_BHWD, student["b"].patch_BHWD], retain_graph=True)
    theirs = torch.autograd.grad(expected, [student["a"].patch_BHWD, student["b"].patch_BHWD])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_is_on_adds_its_terms_with_the_teachers_weights() -> None:
    config = LossConfig(cls="angle", relation=0.5, shift=1.0)
    student = {"a": Tokens(torch.randn(3, 8), torch.randn(3, 4, 4, 8))}
    targets = {"a": Tokens(torch.randn(3, 8), torch.randn(3, 4, 4, 8))}
    space = ClassSpace(torch.randn(8), torch.rand(8) + 0.5, 0.3)
    total, terms = distillation_loss(student, targets, config, {"a": TeacherWeights(2.0, 3.0)}, shift=(1, -1), spaces={"a": space})
    s, t = overlap(student["a"].patch_BHWD, targets["a"].patch_BHWD, (1, -1))
    own = [tokens.cls_BD * space.scale + space.mean_D for tokens in (student["a"], targets["a"]) if tokens.cls_BD is not None]
    relation = relation_loss(s.flatten(1, 2), t.flatten(1, 2))
    expected = {"cls": angle_loss(own[0], own[1], 0.3), "patch": patch_loss(s, t, config), "relation": relation}
    assert {name: float(value) for name, value in terms["a"].items()} == {name: float(value) for name, value in expected.items()}
    parts = {name: float(value) for name, value in expected.items()}
    assert float(total) == pytest.approx(2 * parts["cls"] + 3 * (parts["patch"] + 0.5 * parts["relation"]), rel=1e-6)
    dropped, _ = distillation_loss(student, targets, config, {}, ["a"], shift=(1, -1), spaces={"a": space})
    assert float(dropped) == 0


def test_a_matrix_in_the_normalisation_is_undone_for_the_angle() -> None:
    rotation, mean = torch.linalg.qr(torch.randn(6, 6))[0] * 1.7, torch.randn(6)
    own_s, own_t = torch.randn(4, 6), torch.randn(4, 6)
    space = ClassSpace(mean, rotation, 1.0)
    student, teacher = ((own - mean) @ torch.linalg.inv(rotation).T for own in (own_s, own_t))
    patches = torch.randn(4, 1, 1, 6)
    found = teacher_terms(Tokens(student, patches), Tokens(teacher, patches), LossConfig(cls="angle"), NO_SHIFT, space)["cls"]
    assert float(found) == pytest.approx(float(angle_loss(own_s, own_t, 1.0)), rel=1e-4)


def test_what_cannot_be_computed_is_refused() -> None:
    grid, sampled = torch.randn(2, 4, 4, 6), SampledTokens(None, torch.randn(2, 3, 6), torch.zeros(2, 3, dtype=torch.int64), (4, 4))
    with pytest.raises(BadInput, match="two or more tokens"):
        relation_loss(torch.randn(2, 1, 6), torch.randn(2, 1, 6))
    with pytest.raises(BadInput, match="two or more tokens"):
        relation_loss(torch.randn(2, 3, 6), torch.randn(2, 4, 6))
    with pytest.raises(BadInput, match="sampled tokens cannot be compared under a shift"):
        teacher_terms(sampled, sampled, PAPER, (1, 0))
    with pytest.raises(BadInput, match="each teacher's own space"):
        teacher_terms(Tokens(grid[:, 0, 0], grid), Tokens(grid[:, 0, 0], grid), LossConfig(cls="angle"))
    with pytest.raises(BadInput, match=r"\(2, 6\) against \(2, 5\)"):
        angle_loss(torch.randn(2, 6), torch.randn(2, 5), 1.0)


RECIPE = TrainRecipe(student=StudentConfig("vit-mini", sizes_px=(32,)))  # a grid of 4×4


@pytest.mark.parametrize(("loss", "sizes", "grids", "spec", "says"), [
    (LossConfig(relation=1.0), (16,), {"a": [(1, 1)]}, {"tokens": 1}, "of teacher a and vit-mini at 16 px, .* 2×2, there is one"),
    (LossConfig(relation=1.0), (32,), {"a": [(4, 4)]}, {"tokens": 1}, "loss.relation compares two tokens"),
    (LossConfig(shift=0.5), (32,), {"a": [(4, 4)]}, {"tokens": 6}, "holds 6 of each"),
    (LossConfig(shift=0.5), (24,), {"a": [(3, 3)]}, {}, "no such shift for vit-mini at 24 px"),
    (LossConfig(shift=0.5), (64, 32), {"a": [(4, 4)], "b": [(6, 6)]}, {}, r"no such shift for vit-mini at 32 px.*a 4×4, b 6×6"),
    (LossConfig(cls="angle"), (32,), {"a": [(4, 4)]}, {"cls_dim": None}, "no teacher has one: a"),
])  # fmt: skip
def test_a_recipe_whose_losses_cannot_be_computed_is_refused_at_the_start(
    loss: LossConfig, sizes: tuple[int, ...], grids: dict[str, list[tuple[int, int]]], spec: dict[str, Any], says: str
) -> None:
    recipe = replace(RECIPE, loss=loss, student=replace(RECIPE.student, sizes_px=sizes))
    specs = {name: replace(TargetSpec(6, 6, grid[0]), **spec) for name, grid in grids.items()}
    with pytest.raises(BadInput, match=says):
        refuse_losses(recipe, grids, specs)
    refuse_losses(replace(recipe, loss=LossConfig()), grids, specs)


def test_grids_that_a_live_teacher_may_have_are_looked_at_all() -> None:
    recipe = replace(RECIPE, loss=LossConfig(shift=0.5), student=replace(RECIPE.student, sizes_px=(64,)))
    refuse_losses(recipe, {"a": [(8, 8), (16, 16), (4, 4)]}, {"a": TargetSpec(6, 6, (8, 8))})
    with pytest.raises(BadInput, match="a 8×8/11×11"):
        refuse_losses(recipe, {"a": [(8, 8), (11, 11)]}, {"a": TargetSpec(6, 6, (8, 8))})


def test_the_table_has_the_losses_that_are_offered_each_with_its_work() -> None:
    assert tuple(LOSSES) == NAMED_LOSSES
    assert all("arXiv 2" in row.follows and row.setting.startswith("loss.") for row in LOSSES.values())
    assert LossConfig().named() == []
    assert list(described(LossConfig(cls="angle", relation=0.1, shift=0.5))) == ["relation", "angle", "shift"]
    assert CLASS_LOSSES == ("cosine", "angle")


def test_a_record_leaves_them_out_where_they_are_off() -> None:
    assert not {"cls", "relation", "shift"} & set(TrainRecipe().decisive()["loss"])
    assert replace(TrainRecipe(), loss=LossConfig(relation=0.5)).decisive()["loss"]["relation"] == 0.5


@pytest.mark.parametrize(("key", "make"), [
    ("loss of class tokens", lambda: LossConfig(cls="angles")), ("loss.relation", lambda: LossConfig(relation=-1.0)),
    ("loss.shift", lambda: LossConfig(shift=float("inf"))),
])  # fmt: skip
def test_values_out_of_range_are_refused(key: str, make: Callable[[], LossConfig]) -> None:
    with pytest.raises(BadInput, match=key):
        make()
