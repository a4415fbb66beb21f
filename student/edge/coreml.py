"""A Core ML package of a folded student, for iOS 16, macOS 13 and newer.

Core ML runs on Apple's systems alone. Elsewhere the package is read again and compared in its structure: inputs and outputs by name,
shape and kind, and as many bytes of weights as the student has. That finds a lost output, a wrong shape or a missing weight; it does not
find a wrong number.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...storage.core.errors import BadInput
from .quiet import quiet

_DEBUG = "executorch_debug_handle_mapping.json"  # which the converter leaves beside the manifest; no runtime reads it
LEAST_WEIGHTS = 0.9
"""Share of the student's weights that the package's file of weights holds at least; small tensors stand in the program itself."""


def write_coreml(folded: fx.GraphModule, pixels_BCHW: Tensor, path: Path, *, half: bool) -> None:
    """Write `pixels` → `cls`, `patch`."""
    with quiet(), torch.no_grad():
        import coremltools

        program = torch.export.export(folded, (pixels_BCHW,)).run_decompositions({})
        precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
        package = coremltools.convert(
            program, inputs=[coremltools.TensorType(name="pixels", shape=pixels_BCHW.shape, dtype=np.float32)],
            outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in ("cls", "patch")], compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS16, skip_model_load=True,
        )  # fmt: skip
        package.save(str(path))
    (path / _DEBUG).unlink(missing_ok=True)


def check_structure(path: Path, folded: fx.GraphModule, pixels_BCHW: Tensor, *, half: bool) -> dict[str, int]:
    """Return the operators of a package; raises BadInput when it is not of this student's form."""
    with quiet(), torch.no_grad():
        import coremltools

        tokens = folded(pixels_BCHW)
    wanted = {"pixels": pixels_BCHW.shape, **{name: value.shape for name, value in zip(("cls", "patch"), tokens, strict=True)}}
    spec: Any = coremltools.utils.load_spec(str(path))
    arrays = {feature.name: feature.type.multiArrayType for feature in (*spec.description.input, *spec.description.output)}
    shapes = {name: (tuple(array.shape), array.dataType) for name, array in arrays.items()}
    due = {name: (tuple(shape), int(coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32)) for name, shape in wanted.items()}
    if shapes != due:
        raise BadInput(f"the Core ML package takes and gives {shapes}, where {due} was asked for (shape, kind of numbers)")
    weights = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    expected = sum(value.numel() for value in _used(folded)) * (2 if half else 4)
    if weights < LEAST_WEIGHTS * expected:
        raise BadInput(f"the Core ML package holds {weights} bytes of weights, the student {expected}")
    return count_operations(spec)


def _used(folded: fx.GraphModule) -> list[Tensor]:
    """Return the weights and constants that the graph reads, each once."""
    tensors: dict[str, Tensor] = {**dict(folded.named_parameters()), **dict(folded.named_buffers())}
    names = {str(node.target) for node in folded.graph.nodes if node.op == "get_attr"}
    return [value for name, value in tensors.items() if name in names]


def count_operations(spec: Any) -> dict[str, int]:
    """Return {operation: how often} of a package's program, constants left out."""
    blocks = [block for function in spec.mlProgram.functions.values() for block in function.block_specializations.values()]
    names = [operation.type for block in blocks for operation in block.operations if operation.type != "const"]
    return {name: names.count(name) for name in sorted(set(names))}
