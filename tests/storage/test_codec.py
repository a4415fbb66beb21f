"""Error bounds of each codec, for any tokens."""

import numpy as np
import pytest
from eupe_pipeline.storage.codec import CODECS, code_dtype, decode, encode, has_scale
from eupe_pipeline.storage.errors import BadInput
from hypothesis import given, settings
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
def test_int8_misses_by_at_most_half_a_step_of_the_tokens_own_scale(patch: NDArray[np.float32]) -> None:
    encoded = encode(patch, "int8")
    assert encoded.scale is not None
    step = encoded.scale.astype(np.float32)[..., None]
    assert (np.abs(decode(*encoded, "int8") - patch) <= step * 0.50001).all()


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
    assert encoded.codes.dtype == code_dtype(codec)
    assert (encoded.scale is not None) == has_scale(codec)


def test_an_unknown_codec_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(BadInput, match="did you mean 'int8'"):
        code_dtype("int88")


def test_decoding_with_the_wrong_codec_is_refused() -> None:
    encoded = encode(np.ones((1, 1, 1, 4), np.float32), "int8")
    with pytest.raises(ValueError, match="stores float16"):
        decode(*encoded, "fp16")
    with pytest.raises(ValueError, match="with a scale"):
        decode(encoded.codes, None, "int8")
