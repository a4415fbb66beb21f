"""A student as a folder that `timm.create_model("local-dir:…")` loads, and such a folder as a student.

    FOLDER/config.json          timm's architecture name, its arguments, input size, mean and std
    FOLDER/model.safetensors    timm's own names: ours without the prefix

Our encoders are timm's modules, so the tensors are equal bit for bit; what must be carried over is how they are built. timm pools patch
tokens by average and leaves the rotary rescale off unless told otherwise: both are written down. The price: norm_eps of a ViT is fixed in
timm's own builder, so another value is refused. Reading asks timm to build the model and then looks at the module that it built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import size_hw
from ..encoders.architectures import CONVNEXT, CONVNEXT_STRIDE_PX, VIT, Options
from ..encoders.build import canonical
from ..encoders.preprocessing import Preprocessing
from ..encoders.tokens import Tokens
from ..runtime.timm_import import import_timm
from .official import PREFIX, Imported, with_unit_scales

import_timm()

import timm  # noqa: E402 - only after import_timm
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.eva import Eva  # noqa: E402

NAMES = {
    "eupe_vitt16": "vit_tiny_patch16_dinov3_qkvb",
    "eupe_vits16": "vit_small_patch16_dinov3_qkvb",
    "eupe_vitb16": "vit_base_patch16_dinov3_qkvb",
    "eupe_convnext_tiny": "convnext_tiny",
    "eupe_convnext_small": "convnext_small",
    "eupe_convnext_base": "convnext_base",
}


def timm_name(options: Options) -> str:
    """Return timm's builder of this architecture; other shapes of a family use the smallest student's builder with arguments."""
    for ours, name in NAMES.items():
        if canonical(ours) == options:
            return name
    return NAMES["eupe_vitt16" if options["name"] == "vit" else "eupe_convnext_tiny"]


def timm_arguments(options: Options) -> dict[str, Any]:
    """Return every argument of timm's builder that decides the shape or the computation; raise `BadInput` where timm has none."""
    if options["name"] == "convnext":
        return {
            "depths": options["depths"], "dims": options["widths"], "ls_init_value": options["layer_scale"],
            "norm_eps": options["norm_eps"],
        }  # fmt: skip
    if options["norm_eps"] != VIT["norm_eps"]:
        raise BadInput(f"timm builds this ViT with norm_eps {VIT['norm_eps']} only, the student has {options['norm_eps']}")
    rescale = options["rope_rescale"]
    return {
        "patch_size": options["patch_px"], "embed_dim": options["width"], "depth": options["depth"], "num_heads": options["heads"],
        "qkv_bias": options["qkv_bias"], "mlp_ratio": (options["mlp_hidden"] + 0.5) / options["width"],
        "swiglu_mlp": options["mlp"] == "swiglu", "swiglu_align_to": 8, "init_values": options["layer_scale"],
        "num_reg_tokens": options["registers"], "rope_temperature": options["rope_base"],
        "rope_rescale_coords": None if rescale == 1 else rescale, "global_pool": "token", "dynamic_img_size": True,
    }  # fmt: skip


def write_timm(tensors: Mapping[str, Tensor], architecture: Options, preprocessing: Preprocessing, folder: Path) -> None:
    """Write the folder after timm has built the model and loaded every tensor; raise `BadInput` where timm cannot express it."""
    name = timm_name(architecture)
    tensors, options = with_unit_scales(tensors, architecture)
    arguments = timm_arguments(options)
    state = {key.removeprefix(PREFIX): tensor.detach().contiguous() for key, tensor in tensors.items()}
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    model.load_state_dict(state, strict=True)
    size_px = preprocessing.size_px
    pretrained_cfg = {
        "input_size": [3, *size_hw(size_px)], "fixed_input_size": False, "crop_pct": 1.0, "crop_mode": "squash", "num_classes": 0,
        "interpolation": preprocessing.interpolation, "mean": list(preprocessing.mean), "std": list(preprocessing.std),
        "pool_size": None, "first_conv": "patch_embed.proj" if architecture["name"] == "vit" else "stem.0", "classifier": "head",
    }  # fmt: skip
    config = {
        "architecture": name, "num_classes": 0, "num_features": model.num_features,
        "global_pool": "token" if architecture["name"] == "vit" else "avg", "model_args": arguments, "pretrained_cfg": pretrained_cfg,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def timm_tokens(model: nn.Module, pixels_BCHW: Tensor) -> Tokens:
    """Return class and patch tokens as our encoder defines them, from a timm model in eval mode, however it pools."""
    forward: Any = model.forward_features
    features = forward(pixels_BCHW)
    if isinstance(model, ConvNeXt):
        norm: Any = model.head.norm
        return Tokens(model(pixels_BCHW), norm(features).permute(0, 2, 3, 1))
    eva: Any = model
    stride = eva.patch_embed.patch_size[0]
    grid = (pixels_BCHW.shape[2] // stride, pixels_BCHW.shape[3] // stride)
    return Tokens(features[:, 0], features[:, eva.num_prefix_tokens :].unflatten(1, grid))


def read_timm(folder: Path) -> tuple[Imported, Preprocessing, nn.Module]:
    """Return our architecture and tensors of a timm folder, its preprocessing and timm's model; raise `BadInput` for other models."""
    try:
        config = json.loads((folder / "config.json").read_text())
        model_args = config.get("model_args") or {}
        prep = read_preprocessing(config["pretrained_cfg"], folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"timm cannot load {folder}: {error}") from error
    if not isinstance(model, Eva | ConvNeXt):
        raise BadInput(f"{folder} holds a {type(model).__name__}; a student is an Eva (ViT) or a ConvNeXt")
    try:
        options, notes = _vit_options(model, model_args) if isinstance(model, Eva) else _convnext_options(model, model_args)
    except AttributeError as error:  # a part that every model of EUPE's kind has
        raise BadInput(f"the timm model in {folder} is built otherwise than EUPE's students: {error}") from error
    tensors = {PREFIX + name: _linear(name, tensor) for name, tensor in model.state_dict().items()}
    return Imported(options, tensors, notes), prep, model


def read_preprocessing(pretrained_cfg: Mapping[str, Any], folder: Path) -> Preprocessing:
    """Return how timm's record of a model says that its pixels are made; raise `BadInput` for inputs that are not RGB."""
    channels, height, width = (int(side) for side in pretrained_cfg["input_size"])
    if channels != 3:
        raise BadInput(f"the model in {folder} takes inputs of {channels}×{height}×{width}; a student takes RGB pictures")
    return Preprocessing((height, width), pretrained_cfg["interpolation"], tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"]))


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Return a 1×1 convolution of a ConvNeXt's MLP as the linear layer it is; any other tensor unchanged."""
    of_an_mlp = name.endswith((".mlp.fc1.weight", ".mlp.fc2.weight"))
    return tensor.flatten(1) if of_an_mlp and tensor.shape[2:] == (1, 1) else tensor


def _vit_options(model: Any, model_args: Mapping[str, Any]) -> tuple[Options, list[str]]:
    block = model.blocks[0]
    swiglu = hasattr(block.mlp, "fc1_g")
    _refuse({
        "has no rotary embedding of DINOv3's kind": model.rope is None or not hasattr(model.rope, "rescale_coords"),
        "has no class token": model.cls_token is None,
        "norms its tokens after pooling, not before (fc_norm)": isinstance(model.norm, nn.Identity),
        "has another activation": not _is_gelu(block.mlp.act) and not swiglu,
    })  # fmt: skip
    notes = [] if model.global_pool == "token" else [f"timm pools these tokens by {model.global_pool!r}; the class token is taken as cls"]
    return canonical({
        "name": "vit", "width": model.embed_dim, "depth": len(model.blocks), "heads": block.attn.num_heads,
        "patch_px": model.patch_embed.patch_size[0], "mlp": "swiglu" if swiglu else "gelu", "mlp_hidden": block.mlp.fc2.in_features,
        "registers": model.num_prefix_tokens - 1,
        "layer_scale": _scale(block.gamma_1, model_args.get("init_values", VIT["layer_scale"])),
        "qkv_bias": block.attn.q_bias is not None, "norm_eps": _only_eps(model), "rope_base": model.rope.temperature,
        "rope_rescale": model_args.get("rope_rescale_coords", VIT["rope_rescale"]) or 1.0,
    }), notes  # fmt: skip


def _convnext_options(model: Any, model_args: Mapping[str, Any]) -> tuple[Options, list[str]]:
    blocks = [stage.blocks for stage in model.stages]
    linears = [stage[0].mlp.fc2 for stage in blocks]
    _refuse({
        "norms its map before pooling (head_norm_first)": not isinstance(model.norm_pre, nn.Identity),
        f"pools by {model.head.global_pool.pool_type!r}, not by the mean": model.head.global_pool.pool_type != "avg",
        f"has a stride of {model.feature_info[-1]['reduction']} px": model.feature_info[-1]["reduction"] != CONVNEXT_STRIDE_PX,
        "has another activation": not _is_gelu(blocks[0][0].mlp.act),
        "has global response norms (ConvNeXt V2)": hasattr(blocks[0][0].mlp, "grn"),
        "has a hidden layer in its head": hasattr(getattr(model.head, "pre_logits", None), "fc"),
        "has an overlapping stem": len(model.stem) != 2,
        "has norms without a bias (RMS)": getattr(model.stem[1], "bias", None) is None,
    })  # fmt: skip
    notes = ["read as linear layers: the 1×1 convolutions of its MLPs"] if linears[0].weight.ndim == 4 else []
    return canonical({
        "name": "convnext", "depths": [len(stage) for stage in blocks], "widths": [len(stage.weight) for stage in linears],
        "layer_scale": _scale(blocks[0][0].gamma, model_args.get("ls_init_value", CONVNEXT["layer_scale"])), "norm_eps": _only_eps(model),
    }), notes  # fmt: skip


def _refuse(faults: Mapping[str, bool]) -> None:
    if present := [fault for fault, is_present in faults.items() if is_present]:
        raise BadInput(f"this timm model {' and '.join(present)}; EUPE's students are built otherwise")


def _is_gelu(activation: nn.Module) -> bool:
    """Return whether an activation is the exact GELU: its approximations differ by less than a comparison of tokens can detect."""
    return type(activation).__name__ == "GELU" and getattr(activation, "approximate", "none") == "none"


def _only_eps(model: nn.Module) -> float:
    values = {eps for module in model.modules() if isinstance(eps := getattr(module, "eps", None), float)}
    if len(values) != 1:
        raise BadInput(f"this timm model has norms of several eps, {sorted(values)}; EUPE's students have one")
    return values.pop()


def _scale(gamma: Tensor | None, started_from: float) -> float | None:
    """Return the initial value of layer scale, which is not in the weights but in the arguments; None without layer scale."""
    return None if gamma is None else started_from
