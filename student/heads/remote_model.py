"""A student with heads as `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` builds it.

An export writes this file into its folder as modeling_student.py, with modules.py beside it. It imports nothing but torch, transformers
and modules.py. A call gives a dictionary: `cls` (B, D), `patch` (B, H, W, D), and the outputs of each head under its name.
"""

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .modules import Heads


class StudentWithHeadsConfig(PreTrainedConfig):  # type: ignore[misc] # transformers is untyped
    """The backbone's config, and name, kind and settings of each head."""

    model_type = "student_with_heads"
    backbone_config: dict[str, Any] | None = None
    heads: list[Any] | None = None
    stride_px: int = 16
    prefix_tokens: int = 1


class StudentWithHeads(PreTrainedModel):  # type: ignore[misc]
    """Normalised pixels (B, 3, h, w) → {"cls", "patch", …}; the sides are multiples of the stride."""

    config_class = StudentWithHeadsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: StudentWithHeadsConfig) -> None:
        super().__init__(config)
        described = dict(config.backbone_config or {})
        self.backbone = AutoModel.from_config(AutoConfig.for_model(described.pop("model_type"), **described))
        self.heads = Heads([(name, kind, settings) for name, kind, settings in config.heads or []])
        self.post_init()

    def _encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        found, stride_px = self.backbone(pixel_values=pixels_BCHW), self.config.stride_px
        grid = pixels_BCHW.shape[2] // stride_px, pixels_BCHW.shape[3] // stride_px
        return found.pooler_output, found.last_hidden_state[:, self.config.prefix_tokens :].unflatten(1, grid)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return tokens and the heads' outputs by name."""
        names = ("cls", "patch", *self.heads.output_names)
        return dict(zip(names, self.heads(self._encode, pixel_values), strict=True))
