"""The patch loss over recorded places: the dense one in expectation, the dense one to the bit when all places are stored."""

import itertools

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.sampling import draw_positions
from eupe_pipeline.student.model.losses import distillation_loss, patch_loss, teacher_terms
from eupe_pipeline.student.model.recipe import LossConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.model.student import TargetSpec, TeacherHeads, refuse_unequal_grids
from eupe_pipeline.teachers.encoders.tokens import SampledTokens, Tokens, gather_tokens
from torch import Tensor

from tests.student.model.test_losses import float64_patch_loss

GRID = (2, 3)


def made(images: int = 3, dim: int = 7) -> tuple[Tensor, Tensor]:
    """Student's and teacher's whole grids; the student's wants a gradient."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, images, *GRID, dim, generator=generator)
    return student.clone().requires_grad_(), teacher.clone()


def sampled(teacher_BHWD: Tensor, position_BT: Tensor) -> SampledTokens:
    flat = teacher_BHWD.flatten(1, 2)
    return SampledTokens(None, torch.stack([flat[n, places.long()] for n, places in enumerate(position_BT)]), position_BT, GRID)


def loss_at(student: Tensor, teacher: Tensor, position_BT: Tensor) -> Tensor:
    target = sampled(teacher, position_BT)
    return teacher_terms(gather_tokens(Tokens(None, student), target), target, LossConfig())["patch"]


def test_the_student_s_tokens_are_taken_where_the_places_say() -> None:
    student, teacher = made()
    found = gather_tokens(Tokens(None, student), sampled(teacher, torch.tensor([[0, 5], [1, 2], [3, 4]], dtype=torch.uint16))).patch_BTD
    assert torch.equal(found[1], torch.stack([student[1, 0, 1], student[1, 0, 2]]))
    assert torch.equal(found[2], torch.stack([student[2, 1, 0], student[2, 1, 1]]))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_loss_and_gradient_are_unbiased(count: int) -> None:
    """The mean over all subsets of the places is the loss over the whole grid, in an independent float64 formula and as a gradient."""
    student, teacher = made()
    subsets = [torch.tensor([places] * 3, dtype=torch.uint16) for places in itertools.combinations(range(6), count)]
    losses = torch.stack([loss_at(student, teacher, subset).double() for subset in subsets])
    whole = float64_patch_loss(student.detach().numpy(), teacher.numpy(), 1.0)
    assert losses.detach().mean().item() == pytest.approx(whole, rel=1e-6)
    assert losses.max() - losses.min() > 0.1  # one draw alone is not the loss
    (expected,) = torch.autograd.grad(patch_loss(student, teacher, LossConfig()), student)
    (found,) = torch.autograd.grad(losses.mean(), student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_drawn_places_come_near_the_loss_of_the_whole_grid() -> None:
    """Each view has places of its own, so that a batch's noise averages out: here within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4000, *GRID, 5, generator=generator)
    places = torch.from_numpy(draw_positions(0, [str(n) for n in range(4000)], 1, 6, 2))
    single = torch.stack([loss_at(student[n : n + 1], teacher[n : n + 1], places[n : n + 1]) for n in range(0, 4000, 8)])
    error = float(loss_at(student, teacher, places)) - float(patch_loss(student, teacher, LossConfig()))
    assert abs(error) < 4 * float(single.std()) / np.sqrt(4000)


def test_all_places_give_the_dense_loss_and_gradient_to_the_bit() -> None:
    student, teacher = made(images=5, dim=33)
    every = torch.arange(6).expand(5, 6).to(torch.uint16)
    dense = teacher_terms(Tokens(None, student), Tokens(None, teacher), LossConfig())["patch"]
    kept = loss_at(student, teacher, every)
    assert torch.equal(kept, dense)
    assert torch.equal(*(torch.autograd.grad(one, student)[0] for one in (kept, dense)))


def test_teachers_with_and_without_sampling_share_a_total() -> None:
    student, teacher = made()
    some = sampled(teacher, torch.tensor([[0, 5], [1, 2], [3, 4]], dtype=torch.uint16))._replace(cls_BD=torch.ones(3, 2))
    tokens = Tokens(torch.ones(3, 2), student)
    predicted: dict[str, Tokens | SampledTokens] = {"a": gather_tokens(tokens, some), "b": tokens}
    total, terms = distillation_loss(predicted, {"a": some, "b": Tokens(None, teacher)}, LossConfig(), {})
    assert [set(terms[name]) for name in "ab"] == [{"cls", "patch"}, {"patch"}]
    assert total.item() == pytest.approx(sum(value.item() for each in terms.values() for value in each.values()), rel=1e-6)


def test_what_is_taken_before_the_adapter_is_what_was_taken_behind_it() -> None:
    """In float64, tokens and every gradient, because an adapter sees each token by itself."""
    student, teacher = (one.double() for one in made(images=4))
    target = sampled(teacher, torch.tensor([[0, 5], [1, 2], [3, 4], [2, 5]], dtype=torch.uint16))
    heads = TeacherHeads(7, 16, TargetSpec(7, 7, GRID, 2)).double()
    tokens = Tokens(student.mean((1, 2)), student)
    seen: list[int] = []
    heads.patch.register_forward_pre_hook(lambda module, given: seen.append(given[0].numel() // 7))
    before, behind = heads(gather_tokens(tokens, target)), gather_tokens(heads(tokens), target)
    assert seen == [4 * 2, 4 * 6]
    torch.testing.assert_close(before, behind, rtol=1e-12, atol=1e-12)
    wanted = [tokens.patch_BHWD, *heads.parameters()]
    target = target._replace(cls_BD=torch.ones(4, 7))
    losses = [torch.stack(list(teacher_terms(one, target, LossConfig()).values())).sum() for one in (before, behind)]
    gradients = [torch.autograd.grad(loss, wanted) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_sampled_tokens_are_not_compared_with_a_whole_grid() -> None:
    student, teacher = made()
    target = sampled(teacher, torch.zeros(3, 1, dtype=torch.uint16))
    with pytest.raises(BadInput, match="take those with `gather_tokens`"):
        teacher_terms(Tokens(None, student), target, LossConfig())


def test_a_student_of_another_grid_is_refused() -> None:
    _, teacher = made()
    target = sampled(teacher, torch.zeros(3, 1, dtype=torch.uint16))
    with pytest.raises(BadInput, match=r"grid of 3×3, the feature set holds sampled tokens of a grid of 2×3"):
        gather_tokens(Tokens(None, torch.zeros(3, 3, 3, 7)), target)


def test_grids_are_compared_at_every_size_before_anything_is_built() -> None:
    recipe = TrainRecipe(stage=2, student=StudentConfig("eupe_vitb16", {}, (224, 256)))
    dense = TargetSpec(4, 4, (14, 14))
    refuse_unequal_grids(recipe, {"t": dense})
    with pytest.raises(BadInput, match=r"teacher t: eupe_vitb16 at 256 px has a grid of 16×16.* --grid 16x16 or without --tokens-per-view"):
        refuse_unequal_grids(recipe, {"dense": dense, "t": TargetSpec(4, 4, (14, 14), 64)})
    refuse_unequal_grids(TrainRecipe(stage=2, student=StudentConfig("eupe_vitb16", {}, (224,))), {"t": TargetSpec(4, 4, (14, 14), 64)})
