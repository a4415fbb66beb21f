"""A student with heads as one folder that `AutoModel` of transformers loads, by code that lies in the folder.

    FOLDER/config.json             the backbone's config, the heads, `id2label` of the head that classifies pictures
    FOLDER/model.safetensors       both, under transformers' names for the backbone
    FOLDER/modeling_student.py     `remote_model.py` of this package, beside modules.py and detector.py
    FOLDER/preprocessor_config.json

transformers has no class for several heads on one encoder, so the folder brings one; whoever loads it says `trust_remote_code=True`. The
code is copied by transformers into a cache of modules; the check of an export uses a cache of its own, so that nothing of it stays.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from ...teachers.checkpoints.official import with_unit_scales
from ...teachers.checkpoints.transformers_folder import to_transformers, transformers_config, write_processor
from ...teachers.encoders.architectures import CONVNEXT_STRIDE_PX, Options
from ...teachers.encoders.preprocessing import Preprocessing
from .chosen import NamedHead, modules_of

CODE = {"modeling_student.py": "remote_model.py", "modules.py": "modules.py", "detector.py": "detector.py"}
"""File in the folder → file of this package."""
MODEL_TYPE = "student_with_heads"


def write_headed(
    tensors: Mapping[str, Tensor], architecture: Options, preprocessing: Preprocessing, heads: Sequence[NamedHead], folder: Path
) -> list[str]:
    """Write the folder and return its files, the weights first."""
    tensors, options = with_unit_scales(tensors, architecture)
    for file, source in CODE.items():
        (folder / file).write_text((Path(__file__).parent / source).read_text())
    vit = options["name"] != "convnext"
    (folder / "config.json").write_text(json.dumps({
        "model_type": MODEL_TYPE, "architectures": ["StudentWithHeads"],
        "auto_map": {"AutoConfig": "modeling_student.StudentWithHeadsConfig", "AutoModel": "modeling_student.StudentWithHeads"},
        "backbone_config": transformers_config(options, preprocessing.size_px).to_dict(),
        "heads": [[one.name, one.kept.kind, dict(one.kept.settings)] for one in heads],
        "stride_px": options["patch_px"] if vit else CONVNEXT_STRIDE_PX, "prefix_tokens": 1 + options["registers"] if vit else 1,
        **_labels(heads), "dtype": "float32", "transformers_version": transformers.__version__,
    }, indent=1, ensure_ascii=False))  # fmt: skip
    modules = {f"heads.{name}": tensor for name, tensor in modules_of(heads).state_dict().items()}
    backbone = {f"backbone.{name}": tensor for name, tensor in to_transformers(tensors, options).items()}
    both = {name: tensor.contiguous() for name, tensor in {**backbone, **modules}.items()}
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    write_processor(preprocessing, folder)
    return ["model.safetensors", "config.json", "preprocessor_config.json", *CODE]


def _labels(heads: Sequence[NamedHead]) -> dict[str, Any]:
    """Return `id2label` and `label2id` of the first head that has classes, a linear probe before others."""
    named = sorted((one for one in heads if one.kept.labels), key=lambda one: one.kept.kind != "linear")
    labels = dict(enumerate(named[0].kept.labels)) if named else {}
    return {
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
    }


def run_folder(folder: Path, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Return what `AutoModel` computes from a folder that this process wrote: its code is this package's."""
    with _own_module_cache(), torch.no_grad():
        model, info = transformers.AutoModel.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        assert not any(info.values()), info
        found: dict[str, Tensor] = model.eval()(pixels_BCHW)
    return found


@contextmanager
def _own_module_cache() -> Iterator[None]:
    """Let transformers copy code into a folder that goes again."""
    dynamic: Any = transformers.dynamic_module_utils
    before, path, modules = dynamic.HF_MODULES_CACHE, list(sys.path), set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="student-code-") as folder:
        dynamic.HF_MODULES_CACHE = folder
        try:
            yield
        finally:
            dynamic.HF_MODULES_CACHE, sys.path[:] = before, path
            for name in [name for name in sys.modules if name.startswith("transformers_modules") and name not in modules]:
                del sys.modules[name]
