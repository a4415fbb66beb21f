"""Tokens on the device are those that numpy decodes and normalises, for every codec and either kind of statistics."""

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.features.codec import CODECS, decode, encode
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.student.data.decode_tokens import decode_patch, mean_patch, normalised


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_codec_is_decoded_as_the_store_decodes_it(codec: str) -> None:
    patch = np.random.default_rng(0).normal(size=(3, 2, 4, 128)).astype(np.float32)
    codes, scale = encode(patch, codec)
    found = decode_patch(torch.from_numpy(np.asarray(codes)), None if scale is None else torch.from_numpy(scale), codec)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), decode(codes, scale, codec), atol=1e-6)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("views", [1, 8, 19])
def test_the_mean_token_is_that_of_the_decoded_ones(codec: str, views: int) -> None:
    codes, scale = encode(np.random.default_rng(2).normal(size=(views, 2, 3, 128)).astype(np.float32), codec)
    found = mean_patch(torch.from_numpy(np.asarray(codes)), None if scale is None else torch.from_numpy(scale), codec)
    assert np.allclose(found.numpy(), decode(codes, scale, codec).mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("method", ["mean and std", "PHI-S"])
def test_live_tokens_are_normalised_as_cached_ones_were(method: str) -> None:
    dim = 8
    cls, patch = np.random.default_rng(1).normal(2, 3, size=(2, 500, dim)).astype(np.float32)
    if method == "PHI-S":
        covariances = Covariance(dim), Covariance(dim)
        for one, samples in zip(covariances, (cls, patch), strict=True):
            one.update(samples)
        statistics = Statistics.from_covariances(*covariances, views=500)
    else:
        moments_of = Moments(dim), Moments(dim)
        for two, samples in zip(moments_of, (cls, patch), strict=True):
            two.update(samples)
        statistics = Statistics.from_moments(*moments_of, views=500)
    assert statistics.method == method
    moments = {name: torch.from_numpy(values) for name, values in statistics.arrays().items()}
    assert np.allclose(normalised(torch.from_numpy(cls), moments, "cls").numpy(), statistics.normalize_cls(cls), atol=1e-5)
    assert np.allclose(normalised(torch.from_numpy(patch), moments, "patch").numpy(), statistics.normalize_patch(patch), atol=1e-5)
