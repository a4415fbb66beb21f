"""Error bounds of each codec, for any tokens."""

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.codec import CODECS, decode, encode, get_codec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

FP16_MAX = 65_504.0
finite_tokens = arrays(
    np.float32,
    array_shapes(min_dims=4, max_dims=4, max_side=5),
    elements=st.floats(-FP16_MAX, FP16_MAX, width=32, allow_subnormal=False),
)


@given(finite_tokens)
def test_fp32_gives_back_every_bit(patch: NDArray[np.float32]) -> None:
    assert decode(*encode(patch, "fp32"), "fp32").tobytes() == patch.tobytes()


@given(finite_tokens)
def test_fp16_is_the_nearest_half(patch: NDArray[np.float32]) -> None:
    found = decode(*encode(patch, "fp16"), "fp16")
    assert np.array_equal(found, patch.astype(np.float16).astype(np.float32))


@settings(max_examples=300)
@given(finite_tokens)
def test_int8_misses_by_at_most_half_the_distance_to_the_next_code(patch: NDArray[np.float32]) -> None:
    encoded = encode(patch, "int8")
    assert encoded.scale is not None
    widest = (np.abs(encoded.codes.astype(np.float32)) + 0.25) / 127**2  # (c + ½)² − c² = c + ¼
    bound = encoded.scale.astype(np.float32) * widest
    assert (np.abs(decode(*encoded, "int8") - patch) <= bound * 1.0001).all()


@settings(max_examples=50)
@example(np.full((1, 2, 2, 384), 1e-6, np.float32))
@given(arrays(np.float32, (1, 2, 2, 384), elements=st.floats(-100, 100, width=32, allow_subnormal=False)))
def test_int8_scales_each_group_of_128_channels_by_its_own_largest(patch: NDArray[np.float32]) -> None:
    codes, scale = encode(patch, "int8")
    assert scale is not None
    assert scale.shape == (1, 2, 2, 3)
    largest = np.abs(patch).reshape(1, 2, 2, 3, 128).max(-1)
    assert (scale >= largest).all()
    assert (scale <= largest * 1.002 + 6e-8).all()  # fp16's steps: a thousandth, and below 6e-5 no finer than 6e-8
    moved = patch.copy()
    moved[..., :128] = 0.0  # what stands in one group changes no code of another
    np.testing.assert_array_equal(encode(moved, "int8").codes[..., 128:], codes[..., 128:])


def test_int8_has_one_scale_where_the_width_is_no_multiple_of_128() -> None:
    codes, scale = encode(np.ones((1, 1, 2, 192), np.float32), "int8")
    assert scale is not None
    assert scale.shape == (1, 1, 2, 1)
    assert (codes == 127).all()


def test_int8_keeps_four_nines_of_tokens_with_a_few_very_large_coordinates() -> None:
    generator = np.random.default_rng(1)
    patch = generator.laplace(size=(2, 8, 8, 1280)).astype(np.float32)
    patch[generator.random(patch.shape) < 0.003] *= 15  # like a ReLU network's: the largest at some 20 deviations
    found = decode(*encode(patch, "int8"), "int8").astype(np.float64)
    cosine = (found * patch).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(patch.astype(np.float64), axis=-1)
    assert np.quantile(cosine, 0.01) > 0.9999


@settings(max_examples=200)
@given(arrays(np.float32, (2, 1, 2, 128), elements=st.floats(-30_000, 30_000, width=32, allow_subnormal=False)))
def test_int4_misses_by_at_most_half_a_step_of_its_group(patch: NDArray[np.float32]) -> None:
    encoded = encode(patch, "int4")
    assert encoded.scale is not None
    assert encoded.codes.shape == (2, 1, 2, 64)
    step = np.repeat(encoded.scale[..., 0].astype(np.float32), 64, axis=-1)
    assert (np.abs(decode(*encoded, "int4") - patch) <= step * 0.5001 + np.abs(patch) * 1e-6).all()


def test_int4_keeps_the_direction_of_normal_tokens() -> None:
    patch = np.random.default_rng(0).normal(size=(4, 16, 16, 1280)).astype(np.float32)
    found = decode(*encode(patch, "int4"), "int4")
    assert ((found * patch).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(patch, axis=-1)).min() > 0.995
    bytes_per_token = sum(part.nbytes for part in encode(patch, "int4") if part is not None) / patch.size
    assert bytes_per_token == 0.5625


def test_int4_packs_the_even_channel_into_the_low_half() -> None:
    patch = np.tile(np.arange(16, dtype=np.float32), 4).reshape(1, 1, 1, 64)
    codes, scale = encode(patch, "int4")
    assert codes[0, 0, 0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert scale is not None
    assert scale[0, 0, 0].tolist() == [[1.0, 0.0]]


def test_int4_refuses_widths_that_are_no_groups() -> None:
    with pytest.raises(BadInput, match="100 channels are not"):
        encode(np.zeros((1, 1, 1, 100), np.float32), "int4")


def test_decoding_goes_into_given_memory() -> None:
    patch = np.random.default_rng(0).normal(size=(3, 2, 2, 64)).astype(np.float32)
    for codec in CODECS:
        encoded, out = encode(patch, codec), np.full_like(patch, np.nan)
        assert decode(*encoded, codec, out) is out
        np.testing.assert_array_equal(out, decode(*encoded, codec))


def test_int8_keeps_four_nines_of_the_direction_of_normal_tokens() -> None:
    patch = np.random.default_rng(0).normal(size=(4, 16, 16, 1280)).astype(np.float32)
    found = decode(*encode(patch, "int8"), "int8")
    dot = (found * patch).sum(-1)
    cosine = dot / np.linalg.norm(found, axis=-1) / np.linalg.norm(patch, axis=-1)
    assert cosine.mean() > 0.9999
    assert np.quantile(cosine, 0.01) > 0.9999


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_stay_zeros(codec: str) -> None:
    patch = np.zeros((1, 2, 2, 128), np.float32)
    assert not decode(*encode(patch, codec), codec).any()


@pytest.mark.parametrize("codec", CODECS)
def test_codes_have_the_type_that_the_codec_declares(codec: str) -> None:
    encoded = encode(np.ones((1, 1, 1, 128), np.float32), codec)
    assert encoded.codes.dtype == get_codec(codec).code_dtype
    assert (encoded.scale is not None) == (get_codec(codec).scaling is not None)


def test_an_unknown_codec_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(BadInput, match="did you mean 'int8'"):
        get_codec("int88")


def test_decoding_with_the_wrong_codec_is_refused() -> None:
    encoded = encode(np.ones((1, 1, 1, 4), np.float32), "int8")
    with pytest.raises(ValueError, match="stores float16"):
        decode(*encoded, "fp16")
    with pytest.raises(ValueError, match="with a scale"):
        decode(encoded.codes, None, "int8")
