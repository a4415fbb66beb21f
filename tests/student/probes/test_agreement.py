"""Agreement is what a plain numpy computation of its definition says, whatever the batches, and has the invariances that it should."""

from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.student.model.losses import align_grids, cls_loss, cosine_loss
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.probes.agreement import Agreement, LinearCka, TokenAgreement, gap, outputs, summarize
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import SampledTokens, Tokens
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cka_oracle(x: Floats, y: Floats) -> float:
    """Through the Gram matrices: another form than the streamed one."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def cka_of(x: Floats, y: Floats, batch: int = 7) -> float:
    found = LinearCka()
    for start in range(0, len(x), batch):
        found.update(torch.from_numpy(x[start : start + batch]), torch.from_numpy(y[start : start + batch]))
    return found.value()


def features(seed: int, n: int = 40, dims: tuple[int, int] = (5, 8)) -> tuple[Floats, Floats]:
    """Two related sets of features far from the origin."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, dims[0]))
    y = x @ generator.normal(size=dims) + generator.normal(size=(n, dims[1]))
    return x + 30, y - 100


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_streamed_cka_is_that_of_the_gram_matrices(seed: int, batch: int) -> None:
    x, y = features(seed)
    assert cka_of(x, y, batch) == pytest.approx(cka_oracle(x, y), rel=1e-9)
    assert 0 <= cka_of(x, y, batch) <= 1


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_cka_does_not_change_under_rotation_isotropic_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x, y = features(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(5, 5)))[0]
    assert cka_of(x @ rotation * scale + shift, y) == pytest.approx(cka_of(x, y), rel=1e-7)


def test_cka_is_one_for_the_same_features_and_changes_under_another_linear_map() -> None:
    x, y = features(0)
    assert cka_of(x, x) == pytest.approx(1.0, abs=1e-12)
    assert cka_of(x, x * [10, 1, 1, 1, 1]) < 0.9
    assert cka_of(x, np.random.default_rng(3).normal(size=(40, 8))) < cka_of(x, y)


def test_features_that_do_not_vary_have_a_cka_of_zero() -> None:
    x, _ = features(0)
    assert cka_of(x, np.full((40, 3), 0.1)) == 0.0


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_the_mean_cosine_is_numpys_whatever_the_batches(seed: int, batch: int) -> None:
    x, y = (values.astype(np.float32) for values in features(seed, dims=(6, 6)))
    found = TokenAgreement()
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        found.update(torch.from_numpy(x[part]), torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found.figures()["cosine"] == pytest.approx(float(cosines.mean()), rel=1e-5)


def test_identical_tokens_agree_wholly() -> None:
    torch.manual_seed(0)
    tokens, one = Tokens(torch.randn(9, 6), torch.randn(9, 2, 2, 6)), Agreement()
    one.update(tokens, tokens, tokens)
    assert one.figures() == {
        "agreement": pytest.approx(1.0),
        "cls": {"cosine": pytest.approx(1.0), "cka": pytest.approx(1.0)},
        "patch": {"cosine": pytest.approx(1.0), "cka": pytest.approx(1.0)},
    }


@pytest.mark.parametrize("grid", [(3, 3), (2, 2), (5, 4)])
def test_the_cosines_are_one_minus_the_losses_on_whole_grids_of_any_size(grid: tuple[int, int]) -> None:
    student, target, pixels = made(None, grid)
    found = {"t": Agreement()}
    with torch.no_grad():
        found["t"].update(*outputs(student, pixels, {"t": target})["t"], target)
        predicted = student(pixels)["t"]
        cls, patch = cls_loss(predicted.cls_BD, target.cls_BD), cosine_loss(*align_grids(predicted.patch_BHWD, target.patch_BHWD))
    figures = found["t"].figures()
    assert figures["cls"]["cosine"] == pytest.approx(1 - float(cls), abs=1e-6)
    assert figures["patch"]["cosine"] == pytest.approx(1 - float(patch), abs=1e-6)
    assert figures["agreement"] == pytest.approx((figures["cls"]["cosine"] + figures["patch"]["cosine"]) / 2)


def made(tokens: int | None, grid: tuple[int, int]) -> tuple[Student, Any, Any]:
    """A small student, made-up targets of a teacher `t`, and pixels."""
    torch.manual_seed(0)
    student = Student(build_encoder({"name": "vit-mini", "depth": 1}), 8, {"t": TargetSpec(5, 7, grid, tokens)}).eval()
    pixels = torch.randint(0, 256, (4, 24, 24, 3), dtype=torch.uint8)
    return student, Tokens(torch.randn(4, 5), torch.randn(4, *grid, 7)), pixels


def test_sampled_tokens_are_compared_at_their_own_places() -> None:
    student, target, pixels = made(2, (3, 3))
    position = torch.tensor([[0, 4], [1, 2], [7, 8], [3, 6]])
    picked = torch.gather(target.patch_BHWD.flatten(1, 2), 1, position[..., None].expand(-1, -1, 7))
    found, sampled = {"t": Agreement()}, SampledTokens(target.cls_BD, picked, position, (3, 3))
    with torch.no_grad():
        found["t"].update(*outputs(student, pixels, {"t": sampled})["t"], sampled)
        predicted = student(pixels)["t"].patch_BHWD.flatten(1, 2)
    chosen = torch.gather(predicted, 1, position[..., None].expand(-1, -1, 7))
    assert found["t"].figures()["patch"]["cosine"] == pytest.approx(1 - float(cosine_loss(chosen, picked)), abs=1e-6)


def test_teachers_count_alike_and_one_without_class_tokens_by_its_patches() -> None:
    class Fixed(Agreement):
        def __init__(self, figures: dict[str, Any]) -> None:
            super().__init__()
            self._figures = figures

        def figures(self) -> dict[str, Any]:
            return self._figures

    whole = {"agreement": 0.5, "cls": {"cosine": 0.4, "cka": 0.3}, "patch": {"cosine": 0.6, "cka": 0.7}}
    patches = {"agreement": 0.9, "patch": {"cosine": 0.9, "cka": 0.1}}
    found = summarize({"a": Fixed(whole), "b.2": Fixed(patches)})
    assert found == {
        "agreement": 0.7, "cls_cosine": 0.4, "cls_cka": 0.3, "patch_cosine": 0.75, "patch_cka": pytest.approx(0.4),
        "teachers": {"a": whole, "b.2": patches},
    }  # fmt: skip
    assert gap({"agreement": 0.9, "teachers": {}}, {"agreement": 0.6, "teachers": {}}) == {"agreement": pytest.approx(0.3)}
