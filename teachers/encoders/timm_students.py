"""Any backbone of timm as a student, by name (`timm:NAME`), with random weights.

The shape is timm's; what students need is set beside it: other inputs than the model's own size where timm has a switch for that, no
classifier, and every trainable parameter has a gradient. Nothing is listed by name: a forward and a backward pass on torch's meta device,
which has shapes and no numbers, say what a model gives, and timm's own statements (`output_fmt`, `feature_info`, `forward_intermediates`)
say how its features lie on the picture. Three kinds of model:

- A ViT (VisionTransformer, Eva): its tokens have passed its norm; the class token is its own, or the mean of the patch tokens where it has
  none, and further prefix tokens (registers, the distillation token of a DeiT) are left out.
- A ConvNeXt: tokens as of EUPE's ConvNeXts, by its own norm, of whatever kind; where it norms the map before pooling, cls is the mean.
- Any other: its last feature map is the patch tokens (`map` says where it comes from), and its head's features before the classifier are
  the class token, which may be of another width (`cls_width`). "class token" stands where the head takes the model's own. An encoder
  that was made without a head (`qwen3_vit_88m_enc`) has the mean of its patch tokens.

The record of a run holds what was found of the model, and is compared when it is read: another timm with another model of that name is an
error. A model is refused where its grid is no whole number of strides, or has other strides at other sizes.
"""

import inspect
import itertools
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, size_hw, size_text
from ..runtime import torchvision_guard
from ..runtime.empty_build import SkipInitialisation
from ..runtime.shape_passes import BatchNormByShape
from .architectures import TIMM_STUDENT, Options
from .encoder import ConvNextEncoder, Encoder, FeaturesEncoder
from .preprocessing import Preprocessing
from .tokens import Tokens

torchvision_guard.install()

import timm  # noqa: E402 - only after the guard
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

_VIT_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "vitamin")  # whose builders take the options of a ViT
_MEAN_OF_NORMED = "mean of patch tokens"
_NORMED_MEAN = "normed mean of patch tokens"
HEAD_FEATURES = "features of its own head"
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}  # timm's switches for inputs of any size; the first that a class has
_MAPS = ("NCHW", "NHWC")
_FAILURES = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, KeyError)


class TimmVitEncoder(FeaturesEncoder):
    """A ViT of timm: prefix tokens, then patch tokens, all after the norm."""

    def of_features(self, features: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D), patch (B, H, W, D)."""
        prefix: int = self.backbone.num_prefix_tokens  # type: ignore[assignment]
        patch_BHWD = torch.unflatten(features[:, prefix:], 1, grid)
        return Tokens(features[:, 0] if self.cls == "class token" else patch_BHWD.mean(dim=(1, 2)), patch_BHWD)


class OtherConvNextEncoder(Encoder):
    """A ConvNeXt of timm that norms by RMS, which has no bias, or norms its map before it is pooled."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D), patch (B, H, W, D)."""
        x_BCHW: Tensor = self.backbone.forward_features(pixels_BCHW)  # type: ignore[operator]
        if self.cls == _MEAN_OF_NORMED:
            return Tokens(x_BCHW.mean(dim=(2, 3)), x_BCHW.permute(0, 2, 3, 1))
        norm: Any = self.backbone.head.norm
        return Tokens(norm(x_BCHW.mean(dim=(2, 3), keepdim=True)).flatten(1), norm(x_BCHW).permute(0, 2, 3, 1))


class TimmMapEncoder(Encoder):
    """Any other backbone of timm: its last feature map, and what its head makes of its features."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D'), patch (B, H, W, D)."""
        return _map_tokens(self.backbone, self.architecture["map"], pixels_BCHW, pools=self.cls != _MEAN_OF_NORMED)


def _map_tokens(backbone: Any, source: str, pixels_BCHW: Tensor, *, pools: bool) -> Tokens:
    """Return class and patch tokens of any backbone; `source` is where its map comes from, `pools` whether it has a head that pools them.

    "NCHW" and "NHWC": the features are a map. "tokens" and "normed tokens": they are a sequence, and timm's `forward_intermediates` knows
    how it lies on the grid, which for windowed models is not row by row.
    """
    if source in _MAPS:
        return _of_map(backbone, source, backbone.forward_features(pixels_BCHW), pools=pools)
    features, maps = backbone.forward_intermediates(pixels_BCHW, indices=1, norm=source == "normed tokens", output_fmt="NCHW")
    return _pooled(backbone, features, maps[-1].permute(0, 2, 3, 1), pools=pools)


def _of_map(backbone: Any, source: str, features: Tensor, *, pools: bool) -> Tokens:
    """Return class and patch tokens of features that are a map."""
    return _pooled(backbone, features, features if source == "NHWC" else features.permute(0, 2, 3, 1), pools=pools)


def _pooled(backbone: Any, features: Tensor, patch_BHWD: Tensor, *, pools: bool) -> Tokens:
    return Tokens(backbone.forward_head(features, pre_logits=True) if pools else patch_BHWD.mean(dim=(1, 2)), patch_BHWD)


def build_timm_student(architecture: Options) -> Encoder:
    """Return the encoder of a canonical record, randomly initialised."""
    inspected = _inspect(architecture["model"], architecture.get("options", {}).get("img_size"))
    backbone: Any = create(architecture)
    published: Any = backbone.pretrained_cfg
    stride, size_px = architecture["stride_px"], architecture.get("options", {}).get("img_size", published["input_size"][-1])
    if architecture["family"] == "map":  # timm's own size need not be a whole number of strides
        size_px = -(-size_px // stride) * stride
    prep = Preprocessing(size_px, mean=tuple(published["mean"]), std=tuple(published["std"]))
    if (hidden := getattr(getattr(backbone, "head", None), "pre_logits", None)) is not None and architecture["family"] != "map":
        hidden.requires_grad_(False)  # the layer before the classifier that there is not: nothing would train it
    for name in inspected.idle:
        backbone.get_parameter(name).requires_grad_(False)
    encoder = around(backbone, architecture, prep)
    encoder.class_parameters = inspected.of_class
    return encoder


def around(backbone: Any, architecture: Options, prep: Preprocessing) -> Encoder:
    """Return the encoder of a record around timm's model of it."""
    return _kind_of(backbone, architecture)(
        backbone, architecture, width=architecture["width"], stride_px=architecture["stride_px"], cls=architecture["cls"], prep=prep
    )


def _kind_of(backbone: Any, architecture: Options) -> type[Encoder]:
    if architecture["family"] == "map":
        return TimmMapEncoder
    if not isinstance(backbone, ConvNeXt):
        return TimmVitEncoder
    return ConvNextEncoder if isinstance(getattr(backbone.head, "norm", None), nn.LayerNorm) else OtherConvNextEncoder


def timm_student(name: str, settings: Mapping[str, Any]) -> Options:
    """Return the canonical record of `timm:NAME`, or the given one when it is that; raise BadInput for what cannot be a student."""
    of_record = name == TIMM_STUDENT
    model = str(settings.get("model", "")) if of_record else name.removeprefix("timm:")
    options = settings.get("options", {}) if of_record else settings
    if not of_record and set(options) - {"img_size"}:
        raise BadInput(
            f"the student {name} takes no options but img_size, of a model with a size of its own: its shape is timm's, layer scale "
            f"included. --set student.options={{}}; got {dict(settings)}"
        )
    record = dict(_inspect(model, options.get("img_size")).record)
    if of_record and {"name": TIMM_STUDENT, **settings} != record:
        raise BadInput(
            f"timm {timm.__version__} knows {model!r} as {record}, the record says {dict(settings)}: install the timm it was trained with"
        )
    return record


class Inspected(NamedTuple):
    """What the meta device said of a model."""

    record: Options
    """Canonical."""
    idle: tuple[str, ...] = ()
    """Parameters that neither class nor patch tokens depend on: they would get no gradient."""
    of_class: tuple[str, ...] = ()
    """Parameters that the class token alone depends on."""


@lru_cache(maxsize=64)
def _inspect(model: str, size_px: Any = None) -> Inspected:
    with torch.random.fork_rng(devices=[]), torch.device("meta"), BatchNormByShape():
        if size_px is not None and (isinstance(size_px, bool) or not isinstance(size_px, int) or not 16 <= size_px <= 4096):
            raise BadInput(f"the student timm:{model} was given img_size = {size_px!r}; expected an input size of 16 to 4096 px")
        backbone: Any = _create(model, {})
        if not isinstance(backbone, VisionTransformer | Eva | ConvNeXt):
            return _inspect_map(model, backbone, size_px)
    if size_px is not None:
        raise _no_size_of_its_own(model)
    if isinstance(backbone, ConvNeXt):
        family, strides = "convnext", {backbone.feature_info[-1]["reduction"]}
        cls = _NORMED_MEAN if isinstance(backbone.norm_pre, nn.Identity) else _MEAN_OF_NORMED
    else:
        family, strides = "vit", set(backbone.patch_embed.feat_ratio(as_scalar=False))
        cls = "class token" if getattr(backbone, "cls_token", None) is not None else _MEAN_OF_NORMED
    if len(strides) != 1:
        raise BadInput(f"timm:{model} has patches of {strides} px; a student's are square")
    return Inspected({
        "name": TIMM_STUDENT, "model": model, "family": family, "cls": cls, "width": int(backbone.num_features),
        "stride_px": int(strides.pop()),
    })  # fmt: skip


def _no_size_of_its_own(model: str) -> BadInput:
    return BadInput(f"the student timm:{model} is built alike for every size and takes no img_size: --set student.options={{}}")


def _inspect_map(model: str, backbone: Any, size_px: int | None) -> Inspected:
    """Return what any other model is: by passes at its own size, and at one that is not square where it takes others."""
    takes, options = constructor_takes(backbone), dict[str, Any]()
    if switch := next((key for key in _ANY_SIZE if key in takes), None):
        options[switch] = _ANY_SIZE[switch]
        backbone = _create(model, options)
    if size_px is not None and (switch or "img_size" not in takes):
        raise _no_size_of_its_own(model)
    channels, height, width = (int(side) for side in backbone.pretrained_cfg["input_size"])
    if channels != 3 or height != width:
        raise BadInput(f"timm:{model} takes inputs of {channels}×{height}×{width}; a student takes square RGB pictures")
    refusals, at_own = list[str](), _first_or_failure(backbone, height)
    for stride, is_stated in _possible_strides(backbone, height, at_own).items():
        side = size_px or -(-height // stride) * stride
        sized = {**options, "img_size": side} if side != height and "img_size" in takes and not switch else options
        try:
            tried = backbone if sized is options else _create(model, sized)
            first = at_own if tried is backbone and side == height else _first_or_failure(tried, side)
            return _inspected_at(model, tried, sized, first, side, stride, is_stated)
        except BadInput as error:
            refusals.append(str(error))
    raise BadInput(refusals[0] if refusals else f"timm:{model} does not say how many pixels a position of its features spans")


def constructor_takes(backbone: nn.Module) -> set[str]:
    """Return the names of a model's arguments, those that a subclass passes on included."""
    constructors = [vars(base)["__init__"] for base in type(backbone).__mro__ if base is not nn.Module and "__init__" in vars(base)]
    return {name for base in constructors for name in inspect.signature(base).parameters}


def _possible_strides(backbone: Any, side: int, first: "_First | Exception") -> dict[int, bool]:
    """Return the stride that timm states (True), then the one that the grid at the model's own size has: each is tried, none believed."""
    infos = list(getattr(backbone, "feature_info", ()))
    stated = [int(infos[-1]["reduction"])] if infos and infos[-1].get("reduction") else []
    rows = 0 if isinstance(first, Exception) else first.tokens.patch_BHWD.shape[1]
    seen = [side // rows] if rows and side % rows == 0 else []
    return {**dict.fromkeys(stated, True), **{stride: stride in stated for stride in seen}}


class _First(NamedTuple):
    """How a model's tokens are had, and those of two pictures."""

    source: str
    pools: bool
    tokens: Tokens


def _first_or_failure(backbone: Any, side: int) -> _First | Exception:
    """Return the first way to a model's tokens that is open; what timm raises when none is."""
    pixels_BCHW = torch.zeros(2, 3, side, side)
    try:
        features = backbone.forward_features(pixels_BCHW)
    except _FAILURES as error:
        return error
    is_map = isinstance(features, Tensor) and features.ndim == 4
    # some models cannot norm what lies before their head, and those that are encoders alone have none
    sources = (str(getattr(backbone, "output_fmt", "NCHW")),) if is_map else ("normed tokens", "tokens")
    failures = list[Exception]()
    for pools, source in itertools.product((True, False), sources):
        try:
            of_features = is_map and source in _MAPS
            tokens = (_of_map(backbone, source, features, pools=pools) if of_features else
                      _map_tokens(backbone, source, pixels_BCHW, pools=pools))  # fmt: skip
            return _First(source, pools, tokens)
        except _FAILURES as error:
            failures.append(error)
    return failures[0]


def _inspected_at(
    model: str, backbone: Any, options: Options, first: _First | Exception, side: int, stride: int, is_stated: bool
) -> Inspected:
    """Return what a model is, if it has this stride; raise `BadInput` with the reason otherwise."""
    if side % stride:
        raise BadInput(f"timm:{model} has a stride of {stride} px, which does not divide img_size = {side}")
    if isinstance(first, Exception):
        raise BadInput(
            f"timm:{model} gives no feature map at {side} px: timm {timm.__version__} says {str(first) or repr(first)}"
        ) from first
    source, pools, (cls_BD, patch_BHWD) = first
    if not isinstance(cls_BD, Tensor) or cls_BD.ndim != 2 or patch_BHWD.ndim != 4:
        raise BadInput(f"timm:{model} gives no class token (B, D) and patch tokens (B, H, W, D)")
    _need_grid(model, patch_BHWD, (side, side), stride)
    if source in ("NCHW", "NHWC") and patch_BHWD.shape[-1] != backbone.num_features:
        raise BadInput(
            f"timm:{model} gives no feature map of its own width: it has {patch_BHWD.shape[-1]} channels, timm says {backbone.num_features}"
        )
    try:
        with torch.no_grad():
            oblong_BHWD = _map_tokens(backbone, source, torch.zeros(2, 3, side, 2 * side), pools=pools).patch_BHWD
    except _FAILURES as error:  # it takes its own size alone, or squares, or multiples of its windows: `try_size` asks for a run's sizes
        if not is_stated:
            raise BadInput(f"timm:{model} takes {side} px alone, and its grid there is not by the stride that it states") from error
    else:
        _need_grid(model, oblong_BHWD, (side, 2 * side), stride)
    own = isinstance(getattr(backbone, "cls_token", None), nn.Parameter) and getattr(backbone, "global_pool", "") == "token"
    of_head = "class token" if own else HEAD_FEATURES
    record: Options = {
        "name": TIMM_STUDENT, "model": model, "family": "map", "map": source,
        "cls": of_head if pools else _MEAN_OF_NORMED, "width": patch_BHWD.shape[-1], "stride_px": stride,
    }  # fmt: skip
    if cls_BD.shape[1] != record["width"]:
        record["cls_width"] = cls_BD.shape[1]
    if options:
        record["options"] = options
    beside_patch = _without_gradient(backbone, patch_BHWD)
    idle = _without_gradient(backbone, cls_BD)
    return Inspected(record, idle, tuple(name for name in beside_patch if name not in idle))


def _need_grid(model: str, patch_BHWD: Tensor, sides: tuple[int, int], stride: int) -> None:
    """Raise `BadInput` unless the map has one position for each stride."""
    grid, wanted = tuple(patch_BHWD.shape[1:3]), tuple(side // stride for side in sides)
    if grid != wanted:
        raise BadInput(
            f"timm:{model} has a grid of {grid[0]}×{grid[1]} at {sides[0]}×{sides[1]} px, where a stride of {stride} px makes "
            f"{wanted[0]}×{wanted[1]}: its stride is not whole, or varies with the size"
        )


def _without_gradient(backbone: nn.Module, tokens: Tensor) -> tuple[str, ...]:
    """Return the parameters without a gradient after a backward pass from some tokens, added to what was there."""
    tokens.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return tuple(name for name, value in backbone.named_parameters() if value.requires_grad and value.grad is None)


def create(architecture: Options) -> nn.Module:
    """Return timm's model of a canonical record, randomly initialised."""
    return _create(architecture["model"], architecture.get("options", {}))


def _create(model: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        entry = timm.model_entrypoint(model.split(".")[0])
    except (RuntimeError, KeyError) as error:
        near = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:5]) or "see timm.list_models()"
        raise BadInput(f"timm has no model {model!r}; near: {near}") from error
    try:
        with SkipInitialisation():  # of what is built on the meta device
            module: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **timm_options(entry), **options)
    except _FAILURES as error:
        raise BadInput(f"timm cannot build {model!r}: {str(error) or repr(error)}") from error
    return module


def timm_options(entry: Any) -> Options:
    """Return what a ViT is built with, by timm's builder of it; {} for any other model."""
    if entry.__module__.rpartition(".")[2] not in _VIT_MODULES:
        return {}
    # a distilled DeiT insists on timm's pool, which `forward_features` does not reach
    return {"dynamic_img_size": True, **({} if "distilled" in entry.__name__ else {"global_pool": ""})}


def try_size(encoder: Encoder, size_px: SizePx, grid: tuple[int, int]) -> None:
    """Raise `BadInput` unless a student of timm gives tokens of `grid` (H, W) at an input size; the encoder is on the meta device."""
    what = f"the student timm:{encoder.architecture['model']} cannot be trained at {size_text(size_px)} px"
    try:
        with BatchNormByShape():
            cls_BD, patch_BHWD = encoder(torch.zeros(2, 3, *size_hw(size_px)))
    except _FAILURES as error:
        raise BadInput(f"{what}: timm {timm.__version__} says {str(error) or repr(error)}; {_other_size(encoder, size_px)}") from error
    width = encoder.width
    if cls_BD.shape != (2, encoder.cls_width) or patch_BHWD.shape != (2, *grid, width):
        raise BadInput(f"{what}: it gives tokens of {tuple(patch_BHWD.shape[1:])}, not of {(*grid, width)}; choose another student")


def _other_size(encoder: Encoder, size_px: SizePx) -> str:
    options = encoder.architecture.get("options", {})
    one_size = encoder.architecture["family"] == "map" and not set(options) & set(_ANY_SIZE)
    if one_size and "img_size" in constructor_takes(encoder.backbone) and options.get("img_size") != size_px:
        own = encoder.preprocessing.size_px
        if not isinstance(size_px, int):
            return f"it is built for squares: --set student.sizes_px=[{own}]"
        return f"it is built for one size: --set student.options.img_size={size_px}, or --set student.sizes_px=[{own}]"
    return "choose student.sizes_px or the student anew"
