"""The ONNX file for edge devices: one shape, opset 18, constants folded, in fp32 or fp16, of operators on the list alone.

The file's version is the one that came with opset 18, which runtimes of 2023 read, and the exporter's notes on source files are left out.
Limit: the weights are in the file, which protobuf ends at 2 GB.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ...storage.core.errors import BadInput
from .half import to_half
from .operators import OPSET, count_operators, not_allowed

IR_VERSION = 8
"""The file format's version; runtimes refuse a newer one than they know."""


def write_graph(
    folded: fx.GraphModule, example: Tensor, path: Path, *, half: bool, outputs: Sequence[str] = ("cls", "patch")
) -> dict[str, int]:
    """Write `pixels` → `outputs` and return the operators; raises BadInput for one that is not on the list, before writing."""
    import onnx

    model = _model(folded, example, outputs)
    if half:
        model = to_half(model)
    counts = count_operators(model)
    if strange := not_allowed(counts):
        raise BadInput(
            f"the graph has operators that edge runtimes may not have: {', '.join(strange)}; export without --target edge, for runtimes "
            f"that have them"
        )
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise BadInput(f"the graph takes {model.ByteSize()} bytes, and an ONNX file ends at 2 GB; export without --target edge")
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))
    return counts


def _model(folded: fx.GraphModule, example: Tensor, outputs: Sequence[str]) -> Any:
    """Return the fp32 ModelProto."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            folded, (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=["pixels"],
        )  # fmt: skip
    assert program is not None
    name_outputs(program.model, outputs)
    ClearMetadataAndDocStringPass()(program.model)
    DeduplicateInitializersPass(size_limit=2**31)(program.model)  # each block's rotary tables are the same numbers
    program.model.ir_version = IR_VERSION
    model = program.model_proto
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets.get("") != OPSET:
        raise BadInput(f"torch's exporter wrote opset {opsets.get('')} where {OPSET} was asked for")
    del model.opset_import[:]
    model.opset_import.extend([_opset(OPSET)])
    return model


def name_outputs(model: Any, names: Sequence[str]) -> None:
    """Name the outputs of an onnx_ir model; a value inside that the exporter called the same gets another name.

    The exporter renames outputs itself, without looking: a layer's value may be called `linear`, and then no runtime loads the graph.
    """
    outputs = list(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"inner_{value.name}"
    for output, name in zip(outputs, names, strict=True):
        output.name = name


def _opset(version: int) -> Any:
    from onnx import helper

    return helper.make_opsetid("", version)
