"""Segmentation's parts against a plain way of each."""

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.segmentation import (
    IGNORE,
    Confusion,
    SegmentationView,
    jitter_colours,
    resize_mask,
    resize_shorter,
    segmentation_loss,
    slide_inference,
    to_classes,
    training_view,
    upsampled_argmax,
    window_starts,
)
from torch.nn import functional


def test_metrics_are_those_of_a_loop_over_classes() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 4, (20, 30)), generator.integers(0, 3, (20, 30))
    truth[:3] = IGNORE
    confusion = Confusion(5)
    confusion.add(truth, predicted)
    kept, ious = truth != IGNORE, []
    for label in range(5):
        union = ((truth == label) | (predicted == label)) & kept
        if union.any():
            ious.append(((truth == label) & (predicted == label)).sum() / union.sum())
    found = confusion.metrics()
    assert found["miou"] == pytest.approx(100 * np.mean(ious))
    assert found["pixel_accuracy"] == pytest.approx(100 * (truth == predicted)[kept].mean())
    assert found["iou_by_class"][4] is None


def test_windows_cover_a_side_and_end_at_its_end() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1200, 512, 341) == [0, 341, 682, 688]
    assert window_starts(300, 512, 341) == [0]


def test_sliding_over_what_looks_at_one_pixel_only_changes_nothing() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (40, 65, 3)).astype(np.uint8)
    found = slide_inference(picture, lambda window: torch.from_numpy(window.astype(np.float32)).permute(2, 0, 1), 32, 21)
    torch.testing.assert_close(found, torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1))


def test_classes_are_those_of_upsampling_everything_at_once() -> None:
    logits = torch.randn(37, 9, 13, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(logits[None], (50, 70), mode="bilinear")[0].argmax(dim=0)
    assert np.array_equal(upsampled_argmax(logits, 50, 70), whole.numpy())


def test_ignored_pixels_have_no_loss() -> None:
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    masks[:, :4] = IGNORE
    upsampled = functional.interpolate(logits, (8, 8), mode="bilinear")[:, :, 4:]
    assert segmentation_loss(logits, masks) == pytest.approx(float(functional.cross_entropy(upsampled, masks[:, 4:])), rel=1e-5)


def test_the_shorter_side_is_given_and_masks_keep_their_values() -> None:
    mask = np.random.default_rng(0).integers(0, 150, (30, 41))
    assert resize_shorter(np.zeros((30, 41, 3), np.uint8), 60).shape == (60, 82, 3)
    assert resize_shorter(np.zeros((41, 30, 3), np.uint8), 15).shape == (21, 15, 3)
    assert set(np.unique(resize_shorter(mask.astype(np.uint8), 47, nearest=True))) <= set(np.unique(mask))


def test_a_training_view_moves_picture_and_mask_together_and_is_drawn_from_its_generator() -> None:
    y, x = np.mgrid[:80, :100]
    picture, mask = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8), (x // 10).astype(np.int64)
    view = SegmentationView(48, scale=(1.0, 1.0), distort=False)
    for seed in range(6):
        one, its = training_view(picture, mask, view, np.random.default_rng(seed))
        assert one.shape == (48, 48, 3)
        assert np.array_equal(training_view(picture, mask, view, np.random.default_rng(seed))[0], one)
        scale = 48 / 80
        # Red is twice the column of the source, ten columns of which are one class.
        near = np.abs(one[..., 0].astype(float) / 2 / 10 - (its + 0.45)) < 0.62 / scale**0.5
        assert near.mean() > 0.97


def test_a_class_that_fills_a_crop_is_drawn_again() -> None:
    mask = np.zeros((64, 400), np.int64)
    mask[:, 370:] = 1
    view = SegmentationView(64, scale=(1.0, 1.0), distort=False)
    mixed = [
        len(np.unique(training_view(np.zeros((64, 400, 3), np.uint8), mask, view, np.random.default_rng(seed))[1])) for seed in range(40)
    ]
    assert np.mean(np.array(mixed) == 2) > 0.3  # one draw alone meets both classes in a tenth of the crops


def test_colours_change_and_stay_bytes() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    drawn = [jitter_colours(picture, np.random.default_rng(seed)) for seed in range(8)]
    assert all(one.dtype == np.uint8 and one.shape == picture.shape for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 4


def test_ade20k_counts_from_one() -> None:
    assert to_classes(np.array([[0, 1, 150, 255]]), 255, zero_is_ignored=True).tolist() == [[IGNORE, 0, 149, IGNORE]]


@pytest.mark.parametrize(("ignore", "wanted"), [(255, [0, 7, IGNORE]), (7, [0, IGNORE, 255]), (0, [IGNORE, 7, 255]), (None, [0, 7, 255])])
def test_only_the_value_that_the_user_names_is_ignored(ignore: int | None, wanted: list[int]) -> None:
    assert to_classes(np.array([[0, 7, 255]]), ignore, zero_is_ignored=False).tolist() == [wanted]


def test_the_official_loss_averages_over_ignored_pixels_too_and_ours_over_those_that_count() -> None:
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    masks[:, :6] = IGNORE
    summed = float(functional.cross_entropy(logits[:, :, 6:], masks[:, 6:], reduction="sum"))
    assert float(segmentation_loss(logits, masks, "official")) == pytest.approx(summed / (2 * 8 * 8), rel=1e-5)
    assert float(segmentation_loss(logits, masks, "ours")) == pytest.approx(summed / (2 * 2 * 8), rel=1e-5)


@pytest.mark.parametrize("protocol", ["official", "ours"])
def test_a_batch_in_which_nothing_counts_teaches_nothing_and_is_no_nan(protocol: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 8, 8), IGNORE), protocol)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_official_masks_are_resized_by_torchs_nearest_and_ours_by_pillows() -> None:
    mask = np.arange(5)[None].repeat(5, axis=0)
    assert resize_mask(mask, 3, "official")[0].tolist() == [0, 1, 3]  # the floor of place × 5/3: the corner
    assert resize_mask(mask, 3, "ours")[0].tolist() == [0, 2, 4]  # the centre
    mask[:] = IGNORE
    assert {*resize_mask(mask, 7, "official").ravel(), *resize_mask(mask, 7, "ours").ravel()} == {IGNORE}


def test_without_a_counted_pixel_there_are_no_metrics() -> None:
    confusion = Confusion(3)
    confusion.add(np.full((2, 2), IGNORE), np.zeros((2, 2), np.int64))
    with pytest.raises(BadInput, match="no pixel of the validation masks counts"):
        confusion.metrics()
