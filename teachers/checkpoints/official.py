"""Convert our tensors to the names of the official EUPE hub, and back.

Nearly every tensor is the same under another name; the rest is bookkeeping of the official code, written here as it expects it: the
attention bias is one vector of q, k, v thirds with a mask that zeroes the key's, `mask_token` (masked pre-training only, zero),
`rope_embed.periods` (a function of base and head width, stored in fp32), and ConvNeXt's final norm a second time as `norms.3`. Reading
checks all of that and refuses what would compute something else. What it leaves out because it does not affect the outputs (projection
heads, a mask token, masked biases) is listed in `notes`. The initial value of layer scale is not in a state dict: an imported architecture
has the family's default.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...storage.core.errors import BadInput
from ..encoders.architectures import Options
from ..encoders.build import canonical

PREFIX = "backbone."
_BF16_STEP = 2.0**-8  # the largest relative error of a value rounded to bf16

_WIDTH_OF_BLOCK = {"vit": ".norm1.weight", "convnext": ".norm.weight"}

Tensors = dict[str, Tensor]


class Imported(NamedTuple):
    """A published backbone: our architecture, our tensors, notes."""

    architecture: Options
    tensors: Tensors
    """The state dict of our `Encoder`."""
    notes: list[str]
    """What the file held and we left out or replaced, for people."""


def rope_periods(options: Mapping[str, Any]) -> Tensor:
    """Return the rotary periods, (head width / 4,) fp32: base ** (i / n)."""
    count = options["width"] // options["heads"] // 4
    exponents = 2 * torch.arange(count, dtype=torch.float32) / (2 * count)
    periods: Tensor = options["rope_base"] ** exponents
    return periods


def official_names(options: Mapping[str, Any]) -> dict[str, str]:
    """Return {our name: official name} of the tensors that are equal on both sides."""
    pairs = _vit_names(options) if options["name"] == "vit" else _convnext_names(options)
    return {PREFIX + ours: official for ours, official in pairs}


def with_unit_scales(tensors: Mapping[str, Tensor], options: Options) -> tuple[Tensors, Options]:
    """Return the same encoder with layer scale, of ones where it has none: timm's builders and transformers cannot leave it out."""
    if options["layer_scale"] is not None:
        return dict(tensors), options
    scaled = {**options, "layer_scale": 1.0}
    added = [name for name in official_names(scaled) if name not in tensors]
    widths = {name: tensors[name.rpartition(".")[0] + _WIDTH_OF_BLOCK[options["name"]]] for name in added}
    return {**tensors, **{name: torch.ones_like(norm) for name, norm in widths.items()}}, scaled


def to_official(tensors: Mapping[str, Tensor], architecture: str | Mapping[str, Any]) -> Tensors:
    """Return the official state dict of an encoder's tensors; raise BadInput when they are not that architecture's."""
    options = canonical(architecture)
    names = official_names(options)
    biases = {f"{PREFIX}blocks.{block}.attn.{part}_bias" for block in _biased_blocks(options) for part in "qv"}
    _require_names(set(tensors), set(names) | biases, "an encoder's tensors")
    converted = {official: tensors[ours].detach().float().contiguous() for ours, official in names.items()}
    if options["name"] == "convnext":
        return {**converted, **{f"norms.3.{part}": converted[f"norm.{part}"].clone() for part in ("weight", "bias")}}
    width = options["width"]
    converted |= {"mask_token": torch.zeros(1, width), "rope_embed.periods": rope_periods(options)}
    for block in _biased_blocks(options):
        q_bias, v_bias = (tensors[f"{PREFIX}blocks.{block}.attn.{part}_bias"].detach().float() for part in "qv")
        converted[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q_bias, torch.zeros(width), v_bias])
        converted[f"blocks.{block}.attn.qkv.bias_mask"] = _bias_mask(width)
    return converted


def from_official(tensors: Mapping[str, Tensor]) -> Imported:
    """Return architecture and our tensors of an official state dict; raise BadInput naming what does not belong."""
    heads = [name for name in tensors if name.startswith("projectors.")]
    notes = [f"left out: {len(heads)} tensors of projection heads (projectors.*)"] if heads else []
    rest = {name: tensor.float() for name, tensor in tensors.items() if name not in heads}
    if "storage_tokens" in rest or "rope_embed.periods" in rest:
        options = _vit_options(rest)
    elif "downsample_layers.0.0.weight" in rest:
        options = _convnext_options(rest)
    else:
        raise BadInput(
            f"this is not an official EUPE checkpoint: it has neither storage_tokens nor downsample_layers; {_first_names(set(rest))}"
        )
    names = official_names(options)
    _require_names(set(rest), set(names.values()) | _extra_names(options), "an official EUPE checkpoint")
    converted = {ours: rest[official] for ours, official in names.items()}
    if options["name"] == "convnext":
        if not all(torch.equal(rest[f"norms.3.{part}"], rest[f"norm.{part}"]) for part in ("weight", "bias")):
            raise BadInput("this checkpoint's norms.3 differs from its norm: the official code has one norm under two names")
        return Imported(options, converted, notes)
    converted |= _read_biases(rest, options, notes)
    _check_periods(rest["rope_embed.periods"], options, notes)
    if not options["registers"]:
        notes.append("it holds no storage_tokens: read as a ViT without registers")
    if rest["mask_token"].any():
        notes.append("left out: mask_token (used in masked pre-training only)")
    return Imported(options, converted, notes)


def _read_biases(rest: Tensors, options: Options, notes: list[str]) -> Tensors:
    width, biases, silenced = options["width"], Tensors(), 0
    for block in _biased_blocks(options):
        if not torch.equal(rest[f"blocks.{block}.attn.qkv.bias_mask"], _bias_mask(width)):
            raise BadInput(f"blocks.{block}.attn.qkv.bias_mask must be 1 for q and v and 0 for k, as in every EUPE model")
        q_bias, k_bias, v_bias = rest[f"blocks.{block}.attn.qkv.bias"].chunk(3)
        silenced += bool(k_bias.any())
        biases |= {f"{PREFIX}blocks.{block}.attn.q_bias": q_bias.clone(), f"{PREFIX}blocks.{block}.attn.v_bias": v_bias.clone()}
    if silenced:
        notes.append(f"left out: the key biases of {silenced} blocks, which the mask silences")
    return biases


def _check_periods(periods: Tensor, options: Options, notes: list[str]) -> None:
    expected = rope_periods(options)
    error = ((periods - expected) / expected).abs().max().item()
    if not error <= _BF16_STEP:
        raise BadInput(f"rope_embed.periods are not those of base {options['rope_base']:g}: they differ by up to {error:.1%}")
    if error > 1e-6:
        notes.append(f"replaced: rope_embed.periods, rounded in the file by up to {error:.2%}, by the exact ones")


def _bias_mask(width: int) -> Tensor:
    return torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])


def _biased_blocks(options: Mapping[str, Any]) -> range:
    return range(options["depth"] if options["name"] == "vit" and options["qkv_bias"] else 0)


def _extra_names(options: Mapping[str, Any]) -> set[str]:
    if options["name"] == "convnext":
        return {"norms.3.weight", "norms.3.bias"}
    biases = {f"blocks.{block}.attn.qkv.{part}" for block in _biased_blocks(options) for part in ("bias", "bias_mask")}
    return {"mask_token", "rope_embed.periods"} | biases


def _weight_and_bias(ours: str, official: str) -> Iterator[tuple[str, str]]:
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{official}.{part}"


def _vit_names(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "cls_token", "cls_token"
    if options["registers"]:  # neither side has a tensor for none
        yield "reg_token", "storage_tokens"
    yield from _weight_and_bias("patch_embed.proj", "patch_embed.proj")
    linears = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"} if options["mlp"] == "swiglu" else {"fc1": "fc1", "fc2": "fc2"}
    for n in range(options["depth"]):
        block = f"blocks.{n}"
        yield f"{block}.attn.qkv.weight", f"{block}.attn.qkv.weight"
        for name in ("norm1", "norm2", "attn.proj"):
            yield from _weight_and_bias(f"{block}.{name}", f"{block}.{name}")
        for ours, official in linears.items():
            yield from _weight_and_bias(f"{block}.mlp.{ours}", f"{block}.mlp.{official}")
        if options["layer_scale"] is not None:
            yield from ((f"{block}.gamma_{k}", f"{block}.ls{k}.gamma") for k in (1, 2))
    yield from _weight_and_bias("norm", "norm")


def _convnext_names(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for stage, depth in enumerate(options["depths"]):
        for layer in (0, 1):
            ours = f"stem.{layer}" if stage == 0 else f"stages.{stage}.downsample.{layer}"
            yield from _weight_and_bias(ours, f"downsample_layers.{stage}.{layer}")
        for n in range(depth):
            ours, official = f"stages.{stage}.blocks.{n}", f"stages.{stage}.{n}"
            if options["layer_scale"] is not None:
                yield f"{ours}.gamma", f"{official}.gamma"
            for our_name, other in (("conv_dw", "dwconv"), ("norm", "norm"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
                yield from _weight_and_bias(f"{ours}.{our_name}", f"{official}.{other}")
    yield from _weight_and_bias("head.norm", "norm")


def _count(names: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _vit_options(rest: Tensors) -> Options:
    try:
        width, _, patch_px, _ = rest["patch_embed.proj.weight"].shape
        swiglu = "blocks.0.mlp.w1.weight" in rest
        hidden = len(rest["blocks.0.mlp.w1.weight" if swiglu else "blocks.0.mlp.fc1.weight"])
        heads = width // (4 * len(rest["rope_embed.periods"]))
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"this official ViT checkpoint lacks what tells its shape: {error}") from error
    return canonical({
        "name": "vit", "width": width, "depth": _count(rest, "blocks."), "heads": heads, "patch_px": patch_px, "mlp_hidden": hidden,
        "mlp": "swiglu" if swiglu else "gelu", "registers": rest["storage_tokens"].shape[1] if "storage_tokens" in rest else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in rest, **({} if "blocks.0.ls1.gamma" in rest else {"layer_scale": None}),
    })  # fmt: skip


def _convnext_options(rest: Tensors) -> Options:
    stages = _count(rest, "stages.")
    depths = [_count(rest, f"stages.{stage}.") for stage in range(stages)]
    widths = [len(rest.get(f"stages.{stage}.0.dwconv.bias", torch.empty(0))) for stage in range(stages)]
    scale = {} if "stages.0.0.gamma" in rest else {"layer_scale": None}
    return canonical({"name": "convnext", "depths": depths, "widths": widths, **scale})


def _first_names(names: set[str]) -> str:
    return f"its first names: {', '.join(sorted(names)[:5])}"


def _require_names(names: set[str], expected: set[str], what: str) -> None:
    if names != expected:
        missing, stray = sorted(expected - names), sorted(names - expected)
        raise BadInput(f"this is not {what}: {len(missing)} tensors are missing {missing[:5]}, {len(stray)} do not belong {stray[:5]}")
