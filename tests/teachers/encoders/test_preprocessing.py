import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.teachers.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from hypothesis import given
from hypothesis import strategies as st

PIXELS = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
OTHER: dict[str, Any] = {
    "size_px": 32, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "pixel_scale": 1.0, "channel_order": "bgr",
}  # fmt: skip


def test_the_default_is_imagenets_normalisation_of_0_to_1() -> None:
    x_BCHW = Preprocessing(4).apply(PIXELS)
    expected = (PIXELS.numpy().astype(np.float32) / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert x_BCHW.shape == (2, 3, 4, 4)
    assert x_BCHW.dtype == torch.float32
    np.testing.assert_allclose(x_BCHW.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bgr_takes_blue_first_and_subtracts_means_in_that_order() -> None:
    caffe = Preprocessing(4, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), pixel_scale=1.0, channel_order="bgr")
    first = caffe.apply(PIXELS)[0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([2 - 103.939, 1 - 116.779, 0 - 123.68]))


def test_pixels_stay_channels_last_in_memory() -> None:
    assert Preprocessing(4).apply(PIXELS).is_contiguous(memory_format=torch.channels_last)


def test_the_pixels_that_were_given_are_left_alone() -> None:
    before = PIXELS.clone()
    Preprocessing(4).apply(PIXELS)
    assert torch.equal(PIXELS, before)


@given(byte=st.integers(0, 255), scale=st.sampled_from([1.0, 255.0]), mean=st.floats(-5, 5), std=st.floats(0.01, 5))
def test_each_value_is_scaled_shifted_and_divided_in_that_order(byte: int, scale: float, mean: float, std: float) -> None:
    prep = Preprocessing(1, mean=(mean,) * 3, std=(std,) * 3, pixel_scale=scale)
    value = prep.apply(torch.full((1, 1, 1, 3), byte, dtype=torch.uint8))[0, 0, 0, 0].item()
    assert value == pytest.approx((byte / scale - mean) / std, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("field", [field.name for field in fields(Preprocessing)])
def test_every_field_is_in_the_identity(field: str) -> None:
    assert digest(replace(Preprocessing(64), **{field: OTHER[field]}).identity()) != digest(Preprocessing(64).identity())


def test_a_record_goes_through_json_and_back() -> None:
    prep = Preprocessing(64, "bilinear", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 1.0, "bgr")
    assert Preprocessing.from_dict(json.loads(json.dumps(prep.identity()))) == prep


@pytest.mark.parametrize(
    "record", [{}, {"size_px": 4}, {**Preprocessing(4).identity(), "gamma": 2}, {**Preprocessing(4).identity(), "mean": 1}]
)
def test_a_record_with_missing_or_unknown_fields_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="not a preprocessing record"):
        Preprocessing.from_dict(record)


@pytest.mark.parametrize(
    "changes",
    [
        {"size_px": 0}, {"interpolation": "lanczos7"}, {"channel_order": "rbg"}, {"pixel_scale": 0.0},
        {"std": (1.0, 0.0, 1.0)}, {"mean": (1.0, 2.0)},
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_where_they_are_made(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        replace(Preprocessing(4), **changes)


@pytest.mark.parametrize("pixels", [PIXELS.float(), PIXELS[0], PIXELS.permute(0, 3, 1, 2)])
def test_anything_but_uint8_BHWC_is_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="expected uint8 pixels"):
        Preprocessing(4).apply(pixels)
