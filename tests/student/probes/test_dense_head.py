"""The dense head and its schedules: the figures of the official configs, worked out by hand."""

import math

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.dense_head import ADE20K_RECIPE, NYU_RECIPE, DenseHead, HeadRecipe


def test_segmentation_rises_against_a_falling_line_and_then_follows_a_cosine() -> None:
    assert ADE20K_RECIPE.at(0)[0] == pytest.approx(1e-9)
    assert ADE20K_RECIPE.at(1)[0] == ADE20K_RECIPE.at(0)[0]  # the official loop leaves its first call of the scheduler out
    halfway = 1e-3 * (1 - 0.5 * (1 - 1e-6)) * (1 - 750 / 40_000)
    assert ADE20K_RECIPE.at(751)[0] == pytest.approx(halfway)
    assert ADE20K_RECIPE.at(20_000)[0] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 0.5)) / 2)
    assert ADE20K_RECIPE.at(39_999)[0] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 39_999 / 40_000)) / 2)
    assert {ADE20K_RECIPE.at(step)[1] for step in (0, 1000, 30_000)} == {0.9}


def test_depth_rises_for_a_third_with_beta_0_and_falls_to_a_25_thousandth() -> None:
    assert NYU_RECIPE.at(0)[0] == pytest.approx(3e-7)
    assert NYU_RECIPE.at(0)[1] == NYU_RECIPE.at(12_799)[1] == 0.0
    rising = 3e-7 + 3e-4 * (1 + math.cos(math.pi * 6400 / 38_400)) / 2 * 0.5
    assert NYU_RECIPE.at(6400)[0] == pytest.approx(rising)
    assert NYU_RECIPE.at(12_800)[1] == pytest.approx(0.85)
    assert NYU_RECIPE.at(38_399)[0] == pytest.approx(3e-4 / 25_000)
    assert NYU_RECIPE.at(25_600)[1] == pytest.approx(0.9)


def test_a_shorter_schedule_keeps_its_proportions() -> None:
    short = ADE20K_RECIPE.shortened(400)
    assert (short.steps, short.warmup_steps, short.learning_rate) == (400, 15, 1e-3)
    assert ADE20K_RECIPE.shortened(3).at(0)[0] > 0
    with pytest.raises(BadInput, match="warm-up shorter than its steps"):
        HeadRecipe(10, 2, 1e-3, 0.0, warmup_steps=10, beta2=0.99)


def test_the_head_is_batch_norm_and_one_linear_layer() -> None:
    torch.manual_seed(0)
    head, patch_BHWD = DenseHead(5, 3).train(), torch.randn(4, 2, 3, 5) * 7 + 2
    flat = patch_BHWD.reshape(-1, 5).double()
    normed = (flat - flat.mean(dim=0)) / (flat.var(dim=0, unbiased=False) + 1e-5).sqrt()
    wanted = (normed @ head.linear.weight.detach().double()[:, :, 0, 0].t()).reshape(4, 2, 3, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(head(patch_BHWD).double(), wanted, atol=1e-5, rtol=1e-4)
    assert head.linear.weight.detach().std() == pytest.approx(0.01, rel=0.5)
