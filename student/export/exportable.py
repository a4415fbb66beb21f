"""A copy of an encoder that exporters can trace: dynamic sides, and plain linear layers. Same tokens, other code.

timm divides rotary coordinates by `float(side)`, which turns a traced side into the constant that the example had. torch.export guards
that constant, but an ONNX file has no guards: the graph runs at every size and is right at one (tokens were off by 0.48 at 80 px for a
graph traced at 64×96). Here the division is by the symbolic side; the values are timm's bit for bit, without the training rescale. And
timm joins q's and v's bias with the key's zeros at each call, which a quantiser does not know as a linear layer: it left a quarter of
ViT-T's weights in fp32. Here they are joined once.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...teachers.encoders.encoder import Encoder


class DynamicRotary(nn.Module):
    """Rotary embedding of symbolic sides instead of timm's RotaryEmbeddingDinoV3; `periods` (head width / 4,) fp32."""

    def __init__(self, periods: Tensor) -> None:
        super().__init__()
        self.register_buffer("periods", periods.detach().clone(), persistent=False)

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return (rows · columns, 2 · head width): the sines of each patch, then the cosines, in timm's half-rotation layout."""
        periods: Any = self.periods
        axes = [(torch.arange(side, dtype=torch.float32, device=periods.device) + 0.5) / side for side in shape]
        grid_HW2 = 2.0 * torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1) - 1.0
        angles = (2 * math.pi * grid_HW2.flatten(0, 1)[:, :, None] / periods[None, None, :]).flatten(1)
        return torch.cat([angles.sin().repeat(1, 2), angles.cos().repeat(1, 2)], dim=-1)


def exportable_copy(encoder: Encoder) -> Encoder:
    """Return a copy in eval mode without gradients; a ConvNeXt needs no other change."""
    copied = copy.deepcopy(encoder).eval().requires_grad_(False)
    if copied.architecture["name"] == "vit":
        backbone: Any = copied.backbone
        backbone.rope = DynamicRotary(backbone.rope.periods)
        for block in backbone.blocks if copied.architecture["qkv_bias"] else []:
            _join_biases(block.attn)
    return copied


def _join_biases(attention: Any) -> None:
    """Give the fused linear layer the biases of q, k (zeros) and v as one parameter."""
    zeros = torch.zeros_like(attention.q_bias)
    attention.qkv.bias = nn.Parameter(torch.cat([attention.q_bias, zeros, attention.v_bias]), requires_grad=False)
    attention.q_bias = attention.v_bias = None  # how timm marks that the linear layer has its own bias
