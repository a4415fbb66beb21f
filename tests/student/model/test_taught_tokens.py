"""Tokens in the padding of letterboxed images teach nothing: restated in loops of fp64, for grids, shifts and samples."""

import math

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.views.input_size import SizePx, as_size, size_hw
from eupe_pipeline.storage.views.letterbox import Letterbox, cells_with_content
from eupe_pipeline.student.model.grids import cells_with_image, overlap, shared_cells
from eupe_pipeline.student.model.losses import Places, distillation_loss, patch_loss, relation_loss, taught_tokens, teacher_terms
from eupe_pipeline.student.model.recipe import LossConfig
from eupe_pipeline.student.probes.agreement import Agreement
from eupe_pipeline.teachers.encoders.tokens import SampledTokens, Tokens, gather_tokens
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

PAPER = LossConfig()
CROPS = np.array([[30, 60], [60, 30], [40, 40]])


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def places(student: SizePx, teacher: SizePx, letterbox: Letterbox = Letterbox()) -> Places:  # noqa: B008 - frozen
    return Places(*(torch.from_numpy(letterbox.shares(CROPS, size)) for size in (student, teacher)))


sides = st.integers(1, 40)
strides = st.sampled_from([4, 7, 14, 16])


@given(sides, sides, strides, st.integers(1, 900), st.integers(1, 900), st.sampled_from(["end", "center"]))
def test_on_the_device_the_same_cells_have_any_of_the_image_as_by_whole_numbers(
    rows: int, columns: int, stride: int, height: int, width: int, position: str
) -> None:
    size, crops = as_size([rows * stride, columns * stride]), np.array([[height, width]])
    letterbox = Letterbox(position)  # type: ignore[arg-type]
    by_rows, by_columns = cells_with_content(letterbox.contents(crops, size), size, (rows, columns))
    found = cells_with_image(torch.from_numpy(letterbox.shares(crops, size)), (rows, columns))
    np.testing.assert_array_equal(found.numpy(), by_rows[:, :, None] & by_columns[:, None, :])


def token_losses(student_ND: Tensor, teacher_ND: Tensor) -> list[float]:
    found = []
    for ours, theirs in zip(student_ND, teacher_ND, strict=True):
        cosine = float(ours @ theirs / (ours.norm() * theirs.norm()))
        differences = [abs(float(a - b)) for a, b in zip(ours, theirs, strict=True)]
        smooth = sum(d - 0.5 if d >= 1 else d * d / 2 for d in differences) / len(differences)
        found.append(0.9 * (1 - cosine) + 0.1 * smooth)
    return found


def test_the_patch_loss_is_the_mean_over_images_of_the_mean_over_their_taught_tokens() -> None:
    student, teacher = tokens(3, 4, 4, 8), tokens(3, 4, 4, 8, seed=1)
    where = places(64, 32)
    taught = shared_cells(*where, (4, 4), (4, 4))
    assert taught.sum(dim=(1, 2)).tolist() == [8, 8, 16]
    by_image = []
    for n in range(3):
        losses = token_losses(student[n].reshape(16, 8), teacher[n].reshape(16, 8))
        by_image.append(
            sum(loss for loss, counts in zip(losses, taught[n].flatten().tolist(), strict=True) if counts) / int(taught[n].sum())
        )
    found = teacher_terms(Tokens(None, student), Tokens(None, teacher), PAPER, places=where)["patch"]
    assert math.isclose(float(found), sum(by_image) / 3, rel_tol=1e-12)


def test_the_relation_loss_is_of_pairs_of_taught_tokens() -> None:
    student, teacher, taught = tokens(2, 6, 8), tokens(2, 6, 5, seed=1), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    expected = 0.0
    for n, count in enumerate((3, 6)):
        ours, theirs = (torch.nn.functional.normalize(one[n], dim=-1) for one in (student, teacher))
        pairs = [float(ours[i] @ ours[j] - theirs[i] @ theirs[j]) ** 2 for i in range(count) for j in range(count) if i != j]
        expected += sum(pairs) / len(pairs) / 2
    assert math.isclose(float(relation_loss(student, teacher, taught)), expected, rel_tol=1e-9)


def test_an_image_none_of_whose_tokens_is_taught_counts_nothing() -> None:
    student, teacher = tokens(2, 2, 2, 8), tokens(2, 2, 2, 8, seed=1)
    taught = torch.tensor([[[1, 1], [1, 1]], [[0, 0], [0, 0]]]).bool()
    assert torch.allclose(patch_loss(student, teacher, PAPER, taught), patch_loss(student[:1], teacher[:1], PAPER) / 2)
    assert relation_loss(student.flatten(1, 2), teacher.flatten(1, 2), taught.flatten(1)).isfinite()


@pytest.mark.parametrize("position", ["end", "center"])
@pytest.mark.parametrize(("student_px", "teacher_px"), [(64, 32), ((48, 64), (24, 32)), (64, 64)])
def test_losses_and_gradients_of_whole_views_are_those_without_places(student_px: SizePx, teacher_px: SizePx, position: str) -> None:
    height, width = size_hw(student_px)
    full = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2, dtype=torch.float64)
    student, teacher = tokens(2, height // 16, width // 16, 8), tokens(2, 4, 4, 8, seed=1)
    config = LossConfig(relation=0.3)
    plain = teacher_terms(Tokens(None, student), Tokens(None, teacher), config)
    masked = teacher_terms(Tokens(None, student), Tokens(None, teacher), config, places=Places(full, full))
    for term, value in plain.items():
        torch.testing.assert_close(masked[term], value)


def test_tokens_in_the_padding_have_no_gradient_and_no_say() -> None:
    student, teacher, where = tokens(3, 4, 4, 8).requires_grad_(), tokens(3, 4, 4, 8, seed=1), places(64, 64)
    taught = shared_cells(*where, (4, 4), (4, 4))
    config = LossConfig(relation=0.3)
    loss, _ = distillation_loss({"a": Tokens(None, student)}, {"a": Tokens(None, teacher)}, config, {}, places={"a": where})
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient[~taught].any()
    assert gradient[taught].any(dim=-1).all()
    changed = torch.where(taught[..., None], teacher, teacher + 100)
    other, _ = distillation_loss({"a": Tokens(None, student)}, {"a": Tokens(None, changed)}, config, {}, places={"a": where})
    assert torch.equal(loss, other)


@pytest.mark.parametrize("shift", [(1, -1), (-1, 1), (0, 1)])
def test_under_a_shift_the_overlaps_tokens_keep_what_their_own_place_says(shift: tuple[int, int]) -> None:
    """The grid's numbers are its places: what `overlap` leaves of the teacher is what `shared_cells` has to say something of."""
    number_BHW1 = torch.arange(16, dtype=torch.float64).reshape(1, 4, 4, 1).expand(3, -1, -1, -1)
    where = places(64, 64)
    _, left_BHW1 = overlap(number_BHW1, number_BHW1, shift)
    whole = shared_cells(*where, (4, 4), (4, 4))
    found = shared_cells(*where, (4, 4), (4, 4), shift)
    for n in range(3):
        assert found[n].flatten().tolist() == [bool(whole[n].flatten()[int(place)]) for place in left_BHW1[n].flatten()]


def test_sampled_tokens_are_taught_by_their_own_place() -> None:
    student, teacher, where = tokens(3, 4, 4, 8), tokens(3, 4, 4, 8, seed=1), places(64, 64)
    position = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(n))[:6].sort().values for n in range(3)])
    flat = teacher.flatten(1, 2).gather(1, position[..., None].expand(-1, -1, 8))
    target = SampledTokens(None, flat, position, (4, 4))
    ours = gather_tokens(Tokens(None, student), target)
    taught = taught_tokens(ours, target, where)
    cells = shared_cells(*where, (4, 4), (4, 4)).flatten(1)
    assert taught.tolist() == [[bool(cells[n][place]) for place in position[n].tolist()] for n in range(3)]
    everything = SampledTokens(None, teacher.flatten(1, 2), torch.arange(16).expand(3, -1), (4, 4))
    sampled = teacher_terms(gather_tokens(Tokens(None, student), everything), everything, PAPER, places=where)["patch"]
    torch.testing.assert_close(sampled, teacher_terms(Tokens(None, student), Tokens(None, teacher), PAPER, places=where)["patch"])


def test_agreement_is_of_taught_tokens_alone() -> None:
    features, teacher, where = tokens(3, 4, 4, 8).float(), tokens(3, 4, 4, 8, seed=1).float(), places(64, 64)
    taught = shared_cells(*where, (4, 4), (4, 4))
    predicted = torch.where(taught[..., None], teacher, -teacher)
    with_places, without = Agreement(), Agreement()
    with_places.update(Tokens(None, predicted), Tokens(None, features), Tokens(None, teacher), where)
    without.update(Tokens(None, predicted), Tokens(None, features), Tokens(None, teacher))
    assert with_places.figures()["patch"]["cosine"] == pytest.approx(1.0)
    assert without.figures()["patch"]["cosine"] < 0.5
