"""A student as a folder that `AutoModel.from_pretrained` loads as DINOv3ViT or DINOv3ConvNext, and such a folder as a student.

    FOLDER/config.json  model.safetensors  preprocessor_config.json

transformers keeps q, k and v apart and has no key bias, which is what the official mask amounts to. Its image processor rescales before
it resizes (in float), ours resizes bytes: the same constants, pictures that differ by rounding. transformers calls layer scale lambda1
and always has one; a student without is written with ones. `last_hidden_state` is [cls, registers, patches] for a ViT, [cls, patches] for
a ConvNeXt.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, as_size, size_hw, size_json
from ..encoders.architectures import CONVNEXT_STRIDE_PX, Options
from ..encoders.build import canonical
from ..encoders.preprocessing import Preprocessing
from ..encoders.tokens import Tokens
from ..runtime import torchvision_guard
from .official import PREFIX, Imported, Tensors, with_unit_scales

torchvision_guard.install()

import transformers  # noqa: E402 - only after the guard

transformers.utils.logging.disable_progress_bar()  # our own progress goes through events

_BICUBIC, _BILINEAR, _NEAREST = 3, 2, 0  # Pillow's numbers, as preprocessor_config.json holds them
_RESAMPLE = {"bicubic": _BICUBIC, "bilinear": _BILINEAR, "nearest": _NEAREST}


def transformers_config(options: Options, size_px: SizePx) -> Any:
    """Return the config object of this architecture."""
    if options["name"] == "convnext":
        return transformers.DINOv3ConvNextConfig(
            hidden_sizes=options["widths"], depths=options["depths"], layer_norm_eps=options["norm_eps"],
            layer_scale_init_value=options["layer_scale"], image_size=size_json(size_px),
        )  # fmt: skip
    swiglu, rescale = options["mlp"] == "swiglu", options["rope_rescale"]
    return transformers.DINOv3ViTConfig(
        patch_size=options["patch_px"], hidden_size=options["width"], intermediate_size=options["mlp_hidden"],
        num_hidden_layers=options["depth"], num_attention_heads=options["heads"], hidden_act="silu" if swiglu else "gelu",
        use_gated_mlp=swiglu, layer_norm_eps=options["norm_eps"], rope_theta=options["rope_base"], image_size=size_json(size_px),
        query_bias=options["qkv_bias"], key_bias=False, value_bias=options["qkv_bias"], num_register_tokens=options["registers"],
        layerscale_value=options["layer_scale"], pos_embed_rescale=None if rescale == 1 else float(rescale),
    )  # fmt: skip


def to_transformers(tensors: Mapping[str, Tensor], options: Options) -> Tensors:
    """Return the state dict of the transformers model of an encoder's tensors."""
    state = {theirs: tensors[PREFIX + ours].detach().contiguous() for ours, theirs in _names(options)}
    if options["name"] == "convnext":
        return state
    width = options["width"]
    state["embeddings.mask_token"] = torch.zeros(1, 1, width)
    if not options["registers"]:
        state["embeddings.register_tokens"] = torch.zeros(1, 0, width)  # transformers keeps a tensor of none
    for n in range(options["depth"]):
        parts = tensors[f"{PREFIX}blocks.{n}.attn.qkv.weight"].detach().chunk(3)
        state |= {f"model.layer.{n}.attention.{name}_proj.weight": part.contiguous() for name, part in zip("qkv", parts, strict=True)}
    return state


def from_transformers(state: Mapping[str, Tensor], config: Any) -> Imported:
    """Return our architecture and tensors of a transformers state dict; raise `BadInput` for a model with a key bias."""
    options = _options_of(config)
    tensors = {PREFIX + ours: state[theirs].float() for ours, theirs in _names(options)}
    if options["name"] == "convnext":
        return Imported(options, tensors, [])
    for n in range(options["depth"]):
        qkv = torch.cat([state[f"model.layer.{n}.attention.{name}_proj.weight"].float() for name in "qkv"])
        tensors[f"{PREFIX}blocks.{n}.attn.qkv.weight"] = qkv
    dropped = ["left out: mask_token (used in masked pre-training only)"] if state["embeddings.mask_token"].any() else []
    return Imported(options, tensors, dropped)


def write_transformers(tensors: Mapping[str, Tensor], architecture: Options, preprocessing: Preprocessing, folder: Path) -> None:
    """Write the folder after transformers has built the model and loaded every tensor."""
    tensors, options = with_unit_scales(tensors, architecture)
    kind = transformers.DINOv3ConvNextModel if options["name"] == "convnext" else transformers.DINOv3ViTModel
    model = kind(transformers_config(options, preprocessing.size_px))
    model.load_state_dict(to_transformers(tensors, options), strict=True)
    model.save_pretrained(folder)
    write_processor(preprocessing, folder)


def write_processor(preprocessing: Preprocessing, folder: Path) -> None:
    """Write preprocessor_config.json: the whole picture at the student's height and width."""
    height, width = size_hw(preprocessing.size_px)
    processor = {
        "image_processor_type": "DINOv3ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": _RESAMPLE[preprocessing.interpolation], "do_rescale": True, "rescale_factor": 1 / preprocessing.pixel_scale,
        "do_normalize": True, "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std),
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))


def transformers_tokens(model: nn.Module, pixels_BCHW: Tensor) -> Tokens:
    """Return class and patch tokens as our encoder defines them, from a transformers model in eval mode."""
    output, config = model(pixel_values=pixels_BCHW), getattr(model, "config")  # noqa: B009 - nn.Module's attributes are untyped
    vit = config.model_type == "dinov3_vit"
    stride, skipped = (config.patch_size, 1 + config.num_register_tokens) if vit else (CONVNEXT_STRIDE_PX, 1)
    grid = (pixels_BCHW.shape[2] // stride, pixels_BCHW.shape[3] // stride)
    return Tokens(output.pooler_output, output.last_hidden_state[:, skipped:].unflatten(1, grid))


def read_transformers(folder: Path) -> tuple[Imported, Preprocessing, nn.Module]:
    """Return our architecture and tensors of a transformers folder, its preprocessing and the model; raise `BadInput` for other models."""
    if '"auto_map"' in (folder / "config.json").read_text():  # transformers would ask on the terminal whether to run it
        raise BadInput(f"{folder} brings code of its own (an export with heads does), which is not run here; export without --head")
    try:
        model, info = transformers.AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(f"transformers cannot load {folder}: {error}") from error
    if model.config.model_type not in ("dinov3_vit", "dinov3_convnext"):
        raise BadInput(f"{folder} holds a {model.config.model_type}; a student is a dinov3_vit or a dinov3_convnext")
    faults = {kind: sorted(map(str, names))[:5] for kind, names in info.items() if names}
    if faults:
        raise BadInput(f"the weights in {folder} do not fit its config.json: {faults}")
    return from_transformers(model.state_dict(), model.config), _read_processor(folder), model.eval()


def _read_processor(folder: Path) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    try:
        values = json.loads(path.read_text())
        if off := [name for name in ("do_resize", "do_rescale", "do_normalize") if not values.get(name, True)]:
            raise BadInput(f"{path} switches {', '.join(off)} off; a student resizes, rescales and normalises its pictures")
        names = {number: name for name, number in _RESAMPLE.items()}
        mean, std, size = tuple(values["image_mean"]), tuple(values["image_std"]), values["size"]
        size_px = as_size([int(size["height"]), int(size["width"])], f"pictures of {path}")
        return Preprocessing(size_px, names[values["resample"]], mean, std, 1 / values["rescale_factor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} does not say how pictures are prepared ({error!r}); it comes with the model") from error


def _options_of(config: Any) -> Options:
    gated = getattr(config, "use_gated_mlp", False)
    if config.hidden_act != (expected := "silu" if gated else "gelu"):  # GELU's approximations are nearer than a comparison can tell
        raise BadInput(f"transformers computes other tokens from these weights: its activation is {config.hidden_act}, ours {expected}")
    if config.model_type == "dinov3_convnext":
        return canonical({
            "name": "convnext", "depths": list(config.depths), "widths": list(config.hidden_sizes), "norm_eps": config.layer_norm_eps,
            "layer_scale": config.layer_scale_init_value,
        })  # fmt: skip
    if config.key_bias or config.query_bias != config.value_bias or not (config.mlp_bias and config.proj_bias):
        raise BadInput("this DINOv3 ViT has other biases than EUPE's students: q and v together, none for k, all in MLP and projection")
    return canonical({
        "name": "vit", "width": config.hidden_size, "depth": config.num_hidden_layers, "heads": config.num_attention_heads,
        "patch_px": config.patch_size, "mlp": "swiglu" if config.use_gated_mlp else "gelu", "mlp_hidden": config.intermediate_size,
        "registers": config.num_register_tokens, "layer_scale": config.layerscale_value, "qkv_bias": config.query_bias,
        "norm_eps": config.layer_norm_eps, "rope_base": config.rope_theta, "rope_rescale": config.pos_embed_rescale or 1.0,
    })  # fmt: skip


def _names(options: Options) -> Iterator[tuple[str, str]]:
    """Yield (our name without prefix, their name) of the tensors that are equal on both sides."""
    yield from _convnext_names(options) if options["name"] == "convnext" else _vit_names(options)


def _weight_and_bias(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias"))


def _vit_names(options: Options) -> Iterator[tuple[str, str]]:
    yield "cls_token", "embeddings.cls_token"
    if options["registers"]:
        yield "reg_token", "embeddings.register_tokens"
    yield from _weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings")
    swiglu = {"fc1_g": "gate_proj", "fc1_x": "up_proj", "fc2": "down_proj"}
    linears = swiglu if options["mlp"] == "swiglu" else {"fc1": "up_proj", "fc2": "down_proj"}
    for n in range(options["depth"]):
        ours, theirs = f"blocks.{n}", f"model.layer.{n}"
        for name, other in {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}.items():
            yield from _weight_and_bias(f"{ours}.{name}", f"{theirs}.{other}")
        for name, other in linears.items():
            yield from _weight_and_bias(f"{ours}.mlp.{name}", f"{theirs}.mlp.{other}")
        if options["qkv_bias"]:
            yield from ((f"{ours}.attn.{part}_bias", f"{theirs}.attention.{part}_proj.bias") for part in "qv")
        yield from ((f"{ours}.gamma_{k}", f"{theirs}.layer_scale{k}.lambda1") for k in (1, 2))
    yield from _weight_and_bias("norm", "norm")


def _convnext_names(options: Options) -> Iterator[tuple[str, str]]:
    for stage in range(len(options["depths"])):
        for layer in (0, 1):
            ours = f"stem.{layer}" if stage == 0 else f"stages.{stage}.downsample.{layer}"
            yield from _weight_and_bias(ours, f"model.stages.{stage}.downsample_layers.{layer}")
    parts = {"conv_dw": "depthwise_conv", "norm": "layer_norm", "mlp.fc1": "pointwise_conv1", "mlp.fc2": "pointwise_conv2"}
    for stage, n in ((stage, n) for stage, depth in enumerate(options["depths"]) for n in range(depth)):
        ours, theirs = f"stages.{stage}.blocks.{n}", f"model.stages.{stage}.layers.{n}"
        yield f"{ours}.gamma", f"{theirs}.gamma"
        for name, other in parts.items():
            yield from _weight_and_bias(f"{ours}.{name}", f"{theirs}.{other}")
    yield from _weight_and_bias("head.norm", "layer_norm")
