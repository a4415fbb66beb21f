"""Trainable architectures by name, as plain data: EUPE's six students, the 1.9 B proxy and small siblings.

A name stands for a full set of options of one of two families, `vit` and `convnext`. `build.canonical` turns a name, or a mapping
of a name and the options to change, into that full set: what a run's model.json holds and what goes into an identity, so
that two names for one shape are one thing. `timm:NAME` is any backbone of timm (`timm_students`). The values are the
official hub models' (arXiv 2603.22387); the proxy's dimensions are ours (the paper gives only its size), and so are the
siblings. Nothing here builds a module.
"""

from typing import Any, NamedTuple

from ...storage.core.errors import BadInput

Options = dict[str, Any]

VIT: Options = {
    "name": "vit",
    "width": 192,
    "depth": 12,
    "heads": 3,
    "patch_px": 16,
    "mlp": "gelu",  # or "swiglu"
    "mlp_hidden": None,  # None: 4 * width
    "registers": 4,
    "layer_scale": 1e-5,  # None: no layer scale
    "qkv_bias": True,  # the key's third stays zero: the official checkpoints mask it
    "norm_eps": 1e-5,
    "rope_base": 100.0,
    "rope_rescale": 2.0,  # train time only: coordinates times a log-uniform factor in [1/2, 2]; 1.0: off
}
CONVNEXT: Options = {
    "name": "convnext",
    "depths": [3, 3, 9, 3],
    "widths": [96, 192, 384, 768],
    "layer_scale": 1e-6,
    "norm_eps": 1e-6,
}
ARCHITECTURES: dict[str, Options] = {
    "vit": VIT,
    "convnext": CONVNEXT,
    "eupe_vitt16": VIT,
    "eupe_vits16": {**VIT, "width": 384, "heads": 6},
    "eupe_vitb16": {**VIT, "width": 768, "heads": 12},
    "eupe_convnext_tiny": CONVNEXT,
    "eupe_convnext_small": {**CONVNEXT, "depths": [3, 3, 27, 3]},
    "eupe_convnext_base": {**CONVNEXT, "depths": [3, 3, 27, 3], "widths": [128, 256, 512, 1024]},
    "proxy-1.9b": {**VIT, "width": 1536, "depth": 40, "heads": 24, "mlp": "swiglu", "mlp_hidden": 8192},
    "proxy-7b": {**VIT, "width": 4096, "depth": 40, "heads": 32, "mlp": "swiglu", "mlp_hidden": 8192},  # DINOv3's ViT-7B (ours)
    # Siblings: the same mathematics at a size that two CPU cores train. Layer scale starts near 1, because 1e-5 needs
    # tens of thousands of steps before a block says anything.
    "proxy-small": {
        **VIT, "width": 256, "depth": 8, "heads": 4, "patch_px": 8, "mlp": "swiglu", "mlp_hidden": 680,
        "layer_scale": 0.1,
    },
    "vit-mini": {**VIT, "width": 48, "depth": 2, "heads": 3, "patch_px": 8, "layer_scale": 0.1},
    "convnext-mini": {**CONVNEXT, "depths": [1, 1, 2, 1], "widths": [16, 24, 32, 48], "layer_scale": 0.1},
}  # fmt: skip
CONVNEXT_STRIDE_PX = 32
TIMM_STUDENT = "timm-student"  # the record of a student that was named `timm:NAME`


class Facts(NamedTuple):
    """What a consumer must know of an encoder before it is built."""

    width: int
    """Channels of the class token and of the patch tokens."""
    stride_px: int
    """Pixels per patch token on each axis."""
    cls: str
    """What serves as class token."""


def _need(condition: bool, what: str, full: Options) -> None:
    if not condition:
        raise BadInput(f"{what}; got the architecture {full}")


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: object, least: float = 0.0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > least


def checked_vit(full: Options) -> Options:
    """Return a ViT's full options with what follows from others filled in; raise `BadInput` on bad values."""
    counts = all(_is_count(full[key]) for key in ("width", "depth", "heads", "patch_px"))
    _need(counts and _is_count(full["registers"], 0), "width, depth, heads, patch_px and registers are counts", full)
    if full["mlp_hidden"] is None:
        full["mlp_hidden"] = 4 * full["width"]
    _need(full["mlp"] in ("gelu", "swiglu"), "mlp is 'gelu' or 'swiglu'", full)
    _need(_is_count(full["mlp_hidden"]), "mlp_hidden is a count of channels", full)
    _need(full["mlp"] == "gelu" or full["mlp_hidden"] % 8 == 0, "a swiglu mlp_hidden is a multiple of 8", full)
    _need(full["width"] % (4 * full["heads"]) == 0, "width must be a multiple of 4 * heads (rotary halves)", full)
    _need(isinstance(full["qkv_bias"], bool), "qkv_bias is true or false", full)
    _need(full["rope_rescale"] == 1 or _is_positive(full["rope_rescale"], 1.0), "rope_rescale is at least 1", full)
    _need(_is_positive(full["rope_base"]), "rope_base is positive", full)
    return _checked_scales(full)


def checked_convnext(full: Options) -> Options:
    """Return a ConvNeXt's full options; raise `BadInput` on bad values."""
    for key in ("depths", "widths"):
        stages = full[key]
        _need(isinstance(stages, list) and len(stages) == 4 and all(map(_is_count, stages)), f"{key}: 4 counts", full)
    return _checked_scales(full)


def _checked_scales(full: Options) -> Options:
    scale = full["layer_scale"]
    _need(scale is None or _is_positive(scale), "layer_scale is positive, or null for none", full)
    _need(_is_positive(full["norm_eps"]), "norm_eps is positive", full)
    return full
