"""A folder of a transformers vision model as a teacher (`hf:PATH`):

    config.json                      model.safetensors, or model.safetensors.index.json with the files that it names
    preprocessor_config.json         or processor_config.json, whose `image_processor` it is

Published names differ from transformers' own names by version, so transformers loads the file; what it reports as missing, unexpected or
misshapen is an error here, since it would go on with random tensors. Of a checkpoint with two towers (CLIP, SigLIP), of all of SAM 3 and of
a C-RADIO with its adaptors the vision tower is taken and the named rest is left out by rule. C-RADIO normalises pixels itself: its
constants become the teacher's preprocessing, so that they are applied once.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from ...storage.core.errors import BadInput, unknown_name
from ..encoders.architectures import Options
from ..encoders.preprocessing import Preprocessing, Triple
from ..encoders.transformers_towers import FAMILIES, RADIO, SAM3, HfEncoder
from .sharded import weights_in
from .weights import Tensors, load_strictly

HF_PREFIX = "hf:"
_CONFIG, _PROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
HF_RECORDS = ((_CONFIG,), _PROCESSORS)
"""Files beside the weights, each with the names that it may have."""
_IGNORED_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "_attn_implementation")
_OTHER_TOWER = re.compile(
    r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$|vision_model\.embeddings\.position_ids$"
)
_ADAPTOR = re.compile(r"radio_model\.adaptors\.")
_SAM3_TOWER = re.compile(r"((detector_model\.)?vision_encoder\.backbone\.|backbone\.|)(?=embeddings\.|layer_norm\.|layers\.)")
_SAM3_REST = re.compile(
    r"tracker_model\.|tracker_neck\.|neck\.|(detector_model\.)?(vision_encoder\.neck|text_encoder|text_projection|geometry_encoder|"
    r"detr_encoder|detr_decoder|mask_decoder|dot_product_scoring)\."
)
_VISION_OF = {  # kind of a whole model → kind of its tower, and where the tower's config stands in it
    "siglip": ("siglip_vision_model", ("vision_config",)), "siglip2": ("siglip2_vision_model", ("vision_config",)),
    "clip": ("clip_vision_model", ("vision_config",)), "sam3_vision_model": (SAM3, ("backbone_config",)),
    "sam3": (SAM3, ("vision_config", "backbone_config")), "sam3_video": (SAM3, ("detector_config", "vision_config", "backbone_config")),
}  # fmt: skip
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_ROUNDED = 2.0**-7  # constants in a checkpoint of bf16


class HfFacts(NamedTuple):
    """Facts of a transformers folder."""

    architecture: Options
    preprocessing: Preprocessing
    weights_path: Path


def inspect_hf(folder: Path) -> HfFacts:
    """Return facts of a folder, from its JSON files alone; raise `BadInput` for missing files and unknown models."""
    weights = weights_in(folder)
    processor = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), folder / _PROCESSORS[0])
    missing = [path.name for path in (folder / _CONFIG, weights, processor) if not path.is_file()]
    if missing:
        raise BadInput(f"{folder} is not the folder of a transformers vision model: it lacks {', '.join(missing)}; download them there")
    try:
        config = json.loads((folder / _CONFIG).read_text())
        kind = config["model_type"]
        if kind in _VISION_OF:
            kind, place = _VISION_OF[kind]
            for key in place:
                config = config[key]
        record = json.loads(processor.read_text())
        if kind in FAMILIES:
            config = {key: value for key, value in _full_config(kind, config).items() if key not in _IGNORED_KEYS}
        prep = _preprocessing(record.get("image_processor", record), _own_constants(kind, config, processor))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the records of {folder} make no sense: {error!r}") from error
    if kind not in FAMILIES:
        raise unknown_name("transformers vision model", str(kind), [*FAMILIES, *_VISION_OF])
    architecture = {
        "name": "hf", "model_type": kind, "config": config, "cls": FAMILIES[kind].cls, "width": config["hidden_size"],
        "stride_px": config["patch_size"],
    }  # fmt: skip
    if kind == RADIO:
        architecture["cls_width"] = config["hidden_size"] * len(config["summary_idxs"])
    return HfFacts(architecture, prep, weights)


def load_hf(architecture: Options, weights: Path) -> HfEncoder:
    """Return the tower with the weights of its folder; raise `BadInput` when the file does not fill the model exactly."""
    import transformers

    transformers.logging.set_verbosity_error()  # what it would warn of is an error below
    kind = architecture["model_type"]
    model = getattr(transformers, FAMILIES[kind].model)
    config = model.config_class.from_dict(dict(architecture["config"]))
    try:
        backbone = _sam3(model, config, weights) if kind == SAM3 else _from_pretrained(model, config, weights, kind)
    except (TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"transformers cannot load {weights} as a {kind}: {str(error)[:400]}") from error
    prep = Preprocessing(int(architecture["stride_px"]) * 16)  # the spec's replaces it
    return HfEncoder(
        backbone, architecture, width=architecture["width"], stride_px=architecture["stride_px"], cls=architecture["cls"], prep=prep
    )


def _from_pretrained(model: Any, config: Any, weights: Path, kind: str) -> nn.Module:
    """Return the model that transformers loads; raise `BadInput` for what it would only warn of."""
    backbone, loading_info = model.from_pretrained(
        weights.parent, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    mismatches = {what: sorted(map(str, loading_info[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")}
    left_out = _OTHER_TOWER if FAMILIES[kind].two_towers else _ADAPTOR if kind == RADIO else None
    if left_out is not None:
        mismatches["unexpected"] = [name for name in mismatches["unexpected"] if not left_out.match(name)]
    if any(mismatches.values()):
        faults = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in mismatches.items() if names)
        raise BadInput(f"{weights} does not fit this architecture: {faults}. A teacher with partly random weights is refused")
    if kind == RADIO:
        _take_conditioner_out(backbone, config, weights)
    module: nn.Module = backbone
    return module


def _take_conditioner_out(backbone: Any, config: Any, weights: Path) -> None:
    """Leave the normalisation of pixels to the preprocessing; raise `BadInput` where the file has other constants than its config."""
    conditioner = backbone.input_conditioner
    for what in ("norm_mean", "norm_std"):
        stored, said = getattr(conditioner, what).flatten(), torch.tensor(getattr(config, what))
        if not torch.allclose(stored, said, rtol=_ROUNDED, atol=0):
            raise BadInput(f"{weights} normalises pixels by {what} {stored.tolist()}, its config.json says {said.tolist()}")
    if backbone.summary_idxs.tolist() != list(config.summary_idxs):
        raise BadInput(
            f"the summary in {weights} is of the class tokens {backbone.summary_idxs.tolist()}, its config.json says {config.summary_idxs}"
        )
    backbone.make_preprocessor_external()


def _sam3(model: Any, config: Any, weights: Path) -> nn.Module:
    """Return SAM 3's ViT out of a checkpoint of the ViT, of its vision model, or of all of SAM 3 for pictures or video."""
    backbone: nn.Module = model(config)

    def tower(tensors: Tensors) -> Tensors:
        return {_SAM3_TOWER.sub("", name, count=1): tensor for name, tensor in tensors.items() if not _SAM3_REST.match(name)}

    load_strictly(backbone, weights, tower)
    return backbone


def _full_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with every default filled in, so that the identity does not depend on what a file leaves out."""
    import transformers

    defaults_filled = getattr(transformers, FAMILIES[kind].model).config_class.from_dict(config).to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(defaults_filled, default=str))
    return plain


def _own_constants(kind: str, config: dict[str, Any], processor: Path) -> tuple[Triple, Triple] | None:
    """Return mean and std of a model that normalises pixels itself; raise `BadInput` when its processor does so as well."""
    if kind != RADIO:
        return None
    record = json.loads(processor.read_text())
    if record.get("image_processor", record).get("do_normalize", True):
        raise BadInput(
            f"{processor} normalises pixels, and C-RADIO does so itself, by the constants in its config.json: twice would be wrong. The "
            'published file says "do_normalize": false'
        )
    mean, std = (tuple(map(float, config[key])) for key in ("norm_mean", "norm_std"))
    return mean, std  # type: ignore[return-value]


def _preprocessing(record: dict[str, Any], own_constants: tuple[Triple, Triple] | None) -> Preprocessing:
    crop = record.get("crop_size") if record.get("do_center_crop") else None
    naflex = "max_num_patches" in record
    size = record["patch_size"] * math.isqrt(record["max_num_patches"]) if naflex else crop or record["size"]
    sides = {size} if isinstance(size, int) else {int(value) for value in size.values()}
    if len(sides) != 1:
        raise ValueError(f"the input is not square: {size}")
    scale = 1 / float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 1.0
    if own_constants is not None:
        mean, std = own_constants
    elif record.get("do_normalize", True):
        mean, std = (tuple(map(float, record[key])) for key in ("image_mean", "image_std"))  # type: ignore[assignment]
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(sides.pop(), _INTERPOLATIONS.get(record.get("resample", 3), "bicubic"), mean, std, round(scale, 9))
