"""Vision towers of transformers from a local folder (`hf:PATH`): config.json, model.safetensors, preprocessor_config.json.

Published names differ from transformers' own names by version, so transformers loads the file; what it reports as missing, unexpected or
misshapen is an error here, since it would go on with random tensors. Of a checkpoint with two towers (CLIP, SigLIP) the vision tower is
taken and the named rest is left out by rule. Patch tokens have passed the final norm in every family, as timm's have. SigLIP 2 of fixed
size calls itself `siglip`; its NaFlex form (`siglip2`) gets a square image's patches, as many as its processor allows. A checkpoint in
several files is not supported.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...storage.core.errors import BadInput, unknown_name
from .architectures import Options
from .frozen import FrozenEncoder
from .preprocessing import Preprocessing
from .tokens import LayerTokens, Tokens

HF_PREFIX = "hf:"
HF_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_IGNORED_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "_attn_implementation")
_OTHER_TOWER = re.compile(
    r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$|vision_model\.embeddings\.position_ids$"
)
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class Family(NamedTuple):
    """How one kind of model is built and read."""

    model: str
    """Class in transformers."""
    cls: str
    """What serves as class token."""
    two_towers: bool = False
    """Whether the config and the checkpoint may hold a text tower beside it."""
    takes_patches: bool = False
    """Whether it wants patches and the grid's shape in the place of an image."""
    norm: str = "post_layernorm"
    """The module that norms its last block's tokens."""


FAMILIES: dict[str, Family] = {
    "dinov3_vit": Family("DINOv3ViTModel", "class token", norm="norm"),
    "dinov2": Family("Dinov2Model", "class token", norm="layernorm"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "class token", norm="layernorm"),
    "siglip_vision_model": Family("SiglipVisionModel", "attention pool", True),
    "siglip2_vision_model": Family("Siglip2VisionModel", "attention pool", True, True),
    "clip_vision_model": Family("CLIPVisionModel", "class token", True),
}
_VISION_OF = {"siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model", "clip": "clip_vision_model"}


class HfEncoder(FrozenEncoder):
    """A vision tower of transformers; tokens after the final norm."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D), patch (B, H, W, D)."""
        return self._of_output(self._output(pixels_BCHW, grid), grid)

    @property
    def depth(self) -> int:
        """Return the blocks of the tower."""
        return tower_depth(self.architecture)

    def with_layers(self, pixels_BCHW: Tensor, layers: Sequence[int]) -> LayerTokens:
        """Return the tokens of a batch and those of some blocks, counted from 1."""
        grid = self.grid(*pixels_BCHW.shape[-2:])
        output = self._output(pixels_BCHW, grid, output_hidden_states=True)  # of the embedding, then of each block
        of_layers = {layer: _grid(self._norm(output.hidden_states[layer]), grid) for layer in sorted(layers)}
        return LayerTokens(self._of_output(output, grid), of_layers)

    def _output(self, pixels_BCHW: Tensor, grid: tuple[int, int], **options: bool) -> Any:
        backbone, family = cast(Any, self.backbone), FAMILIES[self.architecture["model_type"]]
        if family.takes_patches:
            return backbone(**_patches(pixels_BCHW, grid), **options)
        resample = {"interpolate_pos_encoding": True} if family.two_towers else {}
        return backbone(pixel_values=pixels_BCHW, **resample, **options)

    def _of_output(self, output: Any, grid: tuple[int, int]) -> Tokens:
        states: Tensor = output.last_hidden_state
        if self.architecture["model_type"] == "clip_vision_model":
            states = self._norm(states)
        return Tokens(output.pooler_output if self.cls == "attention pool" else states[:, 0], _grid(states, grid))

    def _norm(self, states: Tensor) -> Tensor:
        backbone = cast(Any, self.backbone)
        normed: Tensor = getattr(getattr(backbone, "vision_model", backbone), FAMILIES[self.architecture["model_type"]].norm)(states)
        return normed


def tower_depth(architecture: Options) -> int:
    """Return the blocks of a tower, by its record."""
    return int(architecture["config"]["num_hidden_layers"])


def _grid(states: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch tokens (B, H, W, D) at the end of a sequence."""
    count = grid[0] * grid[1]
    return states[:, states.shape[1] - count :].reshape(len(states), *grid, states.shape[-1])


def _patches(pixels_BCHW: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return the inputs of a NaFlex model: patches (B, N, p·p·C), a mask of ones, and each image's grid (B, 2)."""
    images, channels, height, width = pixels_BCHW.shape
    rows, columns = grid
    cut = pixels_BCHW.reshape(images, channels, rows, height // rows, columns, width // columns).permute(0, 2, 4, 3, 5, 1)
    patches_BNP = cut.reshape(images, rows * columns, -1)
    shapes = pixels_BCHW.new_tensor([grid] * images, dtype=torch.int64)
    return {
        "pixel_values": patches_BNP, "pixel_attention_mask": shapes.new_ones((images, rows * columns)), "spatial_shapes": shapes,
    }  # fmt: skip


class HfFacts(NamedTuple):
    """Facts of a transformers folder."""

    architecture: Options
    preprocessing: Preprocessing
    weights_path: Path


def inspect_hf(folder: Path) -> HfFacts:
    """Return facts of a folder, from its JSON files alone; raise `BadInput` for missing files, unknown models and sharded checkpoints."""
    if (folder / "model.safetensors.index.json").is_file():
        raise BadInput(f"{folder} holds a checkpoint in several files; save it as one model.safetensors first")
    missing = [name for name in HF_FILES if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder} is not the folder of a transformers vision model: it lacks {', '.join(missing)}; download them there")
    try:
        config = json.loads((folder / HF_FILES[0]).read_text())
        kind = config["model_type"]
        if kind in _VISION_OF:
            kind, config = _VISION_OF[kind], config["vision_config"]
        prep = _preprocessing(json.loads((folder / HF_FILES[2]).read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the records of {folder} make no sense: {error!r}") from error
    if kind not in FAMILIES:
        raise unknown_name("transformers vision model", str(kind), [*FAMILIES, *_VISION_OF])
    config = {key: value for key, value in _full_config(kind, config).items() if key not in _IGNORED_KEYS}
    architecture = {
        "name": "hf", "model_type": kind, "config": config, "cls": FAMILIES[kind].cls, "width": config["hidden_size"],
        "stride_px": config["patch_size"],
    }  # fmt: skip
    return HfFacts(architecture, prep, folder / HF_FILES[1])


def load_hf(architecture: Options, weights: Path) -> HfEncoder:
    """Return the tower with the weights of its folder; raise `BadInput` when the file does not fill the model exactly."""
    import transformers

    transformers.logging.set_verbosity_error()  # what it would warn of is an error below
    kind = architecture["model_type"]
    model = getattr(transformers, FAMILIES[kind].model)
    try:
        backbone, loading_info = model.from_pretrained(
            weights.parent, config=model.config_class.from_dict(dict(architecture["config"])), dtype=torch.float32,
            use_safetensors=True, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except (TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise BadInput(f"transformers cannot load {weights} as a {kind}: {str(error)[:400]}") from error
    mismatches = {what: sorted(map(str, loading_info[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")}
    if FAMILIES[kind].two_towers:
        mismatches["unexpected"] = [name for name in mismatches["unexpected"] if not _OTHER_TOWER.match(name)]
    if any(mismatches.values()):
        faults = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in mismatches.items() if names)
        raise BadInput(f"{weights} does not fit this architecture: {faults}. A teacher with partly random weights is refused")
    prep = Preprocessing(int(architecture["stride_px"]) * 16)  # the spec's replaces it
    return HfEncoder(
        backbone, architecture, width=architecture["width"], stride_px=architecture["stride_px"], cls=architecture["cls"], prep=prep
    )


def _full_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with every default filled in, so that the identity does not depend on what a file leaves out."""
    import transformers

    defaults_filled = getattr(transformers, FAMILIES[kind].model).config_class.from_dict(config).to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(defaults_filled, default=str))
    return plain


def _preprocessing(record: dict[str, Any]) -> Preprocessing:
    crop = record.get("crop_size") if record.get("do_center_crop") else None
    naflex = "max_num_patches" in record
    size = record["patch_size"] * math.isqrt(record["max_num_patches"]) if naflex else crop or record["size"]
    sides = {size} if isinstance(size, int) else {int(value) for value in size.values()}
    if len(sides) != 1:
        raise ValueError(f"the input is not square: {size}")
    scale = 1 / float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 1.0
    mean, std = (tuple(map(float, record[key])) for key in ("image_mean", "image_std"))
    return Preprocessing(sides.pop(), _INTERPOLATIONS.get(record.get("resample", 3), "bicubic"), mean, std, round(scale, 9))  # type: ignore[arg-type]
