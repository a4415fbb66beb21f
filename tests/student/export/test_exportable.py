"""The copy that exporters trace gives the same tokens and leaves the original alone."""

from typing import Any

import pytest
import torch
from eupe_pipeline.student.export.exportable import DynamicRotary, exportable_copy
from eupe_pipeline.teachers.encoders.build import build_encoder

from ...teachers.checkpoints.test_official import randomised


@pytest.mark.parametrize("sides", [(64, 64), (32, 96)])
@pytest.mark.parametrize("architecture", ["vit-mini", "convnext-mini", {"name": "vit-mini", "qkv_bias": False}])
def test_the_tokens_are_the_encoders(architecture: Any, sides: tuple[int, int]) -> None:
    encoder = randomised(architecture)
    names = set(encoder.state_dict())
    pixels = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for found, wanted in zip(exportable_copy(encoder)(pixels), encoder(pixels), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert set(encoder.state_dict()) == names


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (1, 2)])
def test_the_rotary_embedding_is_timms_bit_for_bit(shape: tuple[int, int]) -> None:
    backbone: Any = build_encoder("vit-mini").eval().backbone
    assert torch.equal(DynamicRotary(backbone.rope.periods).get_embed(shape), backbone.rope.get_embed(shape=shape))
