"""A student of a timm shape as a folder that `timm.create_model("local-dir:…", pretrained=True)` loads, and such a folder as a student.

    FOLDER/config.json          timm's architecture name, its arguments, input size, mean and std; `student`: our record of the architecture
    FOLDER/model.safetensors    timm's own names: ours without the prefix, running statistics included

timm ignores `student`; by it a folder is read back as what was trained, and not as the EUPE student that its modules may look like.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import size_hw
from ..encoders.architectures import Options
from ..encoders.build import canonical
from ..encoders.preprocessing import Preprocessing
from ..encoders.timm_students import around, constructor_takes, timm_options
from ..encoders.tokens import Tokens
from ..runtime.timm_import import import_timm
from .official import PREFIX, Imported
from .timm_folder import read_preprocessing

import_timm()

import timm  # noqa: E402 - only after import_timm

RECORD = "student"


def write_timm_student(tensors: Mapping[str, Tensor], architecture: Options, preprocessing: Preprocessing, folder: Path) -> None:
    """Write the folder after timm has built the model and loaded every tensor."""
    name = architecture["model"].split(".")[0]
    arguments = {**timm_options(timm.model_entrypoint(name)), **architecture.get("options", {})}
    if "global_pool" in arguments and architecture["cls"] == "class token":
        arguments["global_pool"] = "token"  # then the model gives its class token when it is called
    state = {key.removeprefix(PREFIX): tensor.detach().contiguous() for key, tensor in tensors.items()}
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    model.load_state_dict(state, strict=True)
    published, size_px = model.pretrained_cfg, preprocessing.size_px
    if "img_size" in constructor_takes(model):  # unsaid, timm builds positions and windows for the size of the pictures
        arguments.setdefault("img_size", published["input_size"][-1])
    one_size = "img_size" in architecture.get("options", {})
    pretrained_cfg = {
        "input_size": [3, *size_hw(size_px)], "fixed_input_size": one_size, "crop_pct": 1.0, "crop_mode": "squash",
        "num_classes": 0, "interpolation": preprocessing.interpolation, "mean": list(preprocessing.mean), "std": list(preprocessing.std),
        "pool_size": None, "first_conv": published.get("first_conv"), "classifier": published.get("classifier"),
    }  # fmt: skip
    config = {
        "architecture": name, "num_classes": 0, "num_features": model.num_features, "model_args": arguments,
        "pretrained_cfg": pretrained_cfg, RECORD: architecture,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def read_timm_student(folder: Path) -> tuple[Imported, Preprocessing, nn.Module, Callable[[nn.Module, Tensor], Tokens]]:
    """Return record, tensors, preprocessing, timm's model and its tokens; raise `BadInput` for a folder that does not fit its record."""
    try:
        config = json.loads((folder / "config.json").read_text())
        architecture = canonical(config[RECORD])
        prep = read_preprocessing(config["pretrained_cfg"], folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"timm cannot load {folder}: {error}") from error
    tensors = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    return Imported(architecture, tensors, []), prep, model, partial(_tokens, architecture, prep)


def _tokens(architecture: Options, prep: Preprocessing, model: Any, pixels_BCHW: Tensor) -> Tokens:
    tokens: Tokens = around(model, architecture, prep)(pixels_BCHW)
    return tokens


def timm_usage(architecture: Options) -> str:
    """Return the lines of a usage example that make `cls` and `patch` of `model` and `pixels`, indented by four."""
    cls, source = architecture["cls"], architecture.get("map", architecture["family"])
    features = "features = model.forward_features(pixels)"
    if source == "vit":
        patch = "features[:, model.num_prefix_tokens :]"
        token = "features[:, 0]" if cls == "class token" else f"{patch}.mean(dim=1)"
        return f"{features}\n    cls, patch = {token}, {patch}"
    if source == "convnext" and cls == "normed mean of patch tokens":
        return f"{features}\n    cls, patch = model.forward_head(features, pre_logits=True), model.head.norm(features).permute(0, 2, 3, 1)"
    if source == "convnext":
        return f"{features}\n    cls, patch = features.mean(dim=(2, 3)), features.permute(0, 2, 3, 1)"
    head = "model.forward_head(features, pre_logits=True)"
    if source in ("NCHW", "NHWC"):
        return f"{features}\n    cls, patch = {head}, features{'.permute(0, 2, 3, 1)' if source == 'NCHW' else ''}"
    intermediates = f'model.forward_intermediates(pixels, indices=1, norm={source == "normed tokens"}, output_fmt="NCHW")'
    return f"features, maps = {intermediates}\n    cls, patch = {head}, maps[-1].permute(0, 2, 3, 1)"
