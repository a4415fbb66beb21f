"""Depth's parts by hand."""

import numpy as np
import pytest
import torch
from eupe_pipeline.student.probes.depth import (
    DepthView,
    depth_from_bins,
    depth_metrics,
    log_loss,
    predicted_depth,
    scaled_box,
    training_view,
    valid_depth,
)

VIEW = DepthView()


def test_bins_are_a_weighted_mean_from_a_millimetre_to_ten_metres() -> None:
    logits = torch.full((1, 256, 1, 1), -1.0)
    assert depth_from_bins(logits, VIEW).item() == pytest.approx((0.001 + 10) / 2, rel=1e-5)
    logits[0, 255] = 1e6
    assert depth_from_bins(logits, VIEW).item() == pytest.approx(10, rel=1e-4)


def test_the_loss_is_the_formula_and_has_no_variance_at_first() -> None:
    guess, truth = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64)
    g = np.log(guess.numpy() + 1e-3) - np.log(truth.numpy() + 1e-3)
    assert float(log_loss(guess, truth, 0)) == pytest.approx(np.sqrt(0.15 * g.mean() ** 2))
    assert float(log_loss(guess, truth, 100)) == pytest.approx(np.sqrt(0.15 * g.mean() ** 2 + g.var(ddof=1)))
    assert float(log_loss(truth, truth, 0)) == 0.0


def test_metrics_by_hand() -> None:
    guess, truth = np.array([[1.0, 2.0], [3.0, 9.0]], np.float32), np.array([[2.0, 2.0], [4.0, 0.0]], np.float32)
    found = depth_metrics(guess, truth, truth > 0)
    assert found["rmse"] == pytest.approx(np.sqrt((1 + 0 + 1) / 3))
    assert found["abs_rel"] == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert found["delta1"] == pytest.approx(1 / 3)
    assert np.isnan(depth_metrics(guess, truth, truth > 99)["rmse"])


def test_eigens_crop_and_the_range_say_what_is_measured() -> None:
    depth = np.full((480, 640), 5.0, np.float32)
    assert valid_depth(depth, VIEW).sum() == (471 - 45) * (601 - 41)
    depth[100:200] = 10.0
    assert valid_depth(depth, VIEW).sum() == (471 - 45 - 100) * (601 - 41)
    assert valid_depth(depth, DepthView(nyu_crops=False)).sum() == 380 * 640
    assert scaled_box((45, 471, 41, 601), 240, 320) == (slice(22, 235), slice(20, 300))


def test_the_mirror_image_is_turned_back_before_the_mean() -> None:
    logits = torch.full((1, 256, 2, 2), -1.0)
    logits[0, 255, :, 0] = 1e6
    both = torch.cat([logits, logits.flip(-1)])
    found = predicted_depth(both, (2, 2), VIEW)
    assert found[0, 0] == pytest.approx(10, rel=1e-3)
    assert found[0, 1] == pytest.approx(5, rel=1e-3)


def test_a_training_view_is_cut_out_of_the_frame_with_its_depth() -> None:
    y, x = np.mgrid[:480, :640]
    picture = np.stack([x // 4, y // 4, np.zeros_like(x)], axis=-1).astype(np.uint8)
    view = DepthView(distort=False, turn_degrees=0.0)
    for seed in range(4):
        one, its = training_view(picture, x.astype(np.float32), view, np.random.default_rng(seed))
        assert one.shape == (416, 544, 3)
        assert its.min() >= 43
        assert its.max() < 608
        assert np.abs(one[..., 0].astype(np.float32) - its // 4).max() <= 1
