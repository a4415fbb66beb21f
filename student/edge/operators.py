"""The ONNX operators that a graph for edge devices may consist of, and the count of those that one does.

The list is what TensorRT 8.6, OpenVINO, ONNX Runtime Mobile and the converters of phones' makers have for opset 18 in common: arithmetic,
convolutions, matrix products, pools, norms, and moves of data with constant places. Not on it: control flow (If, Loop, Scan), shapes
that are computed (Shape, Range, NonZero, ConstantOfShape), operators newer than opset 18 (Attention, Gelu, RMSNormalization), and
operators of other domains. A student of another operator is refused by name: a graph that one runtime runs is not one for devices.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

OPSET = 18
ALLOWED = frozenset({
    # arithmetic
    "Abs", "Add", "Clip", "Div", "Erf", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "Sum",
    # activations
    "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh",
    # layers
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "InstanceNormalization",
    "LayerNormalization", "MatMul", "MaxPool", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Resize",
    # int8
    "DequantizeLinear", "QuantizeLinear",
    # moves of data
    "Cast", "Concat", "Constant", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


def count_operators(model: Any) -> dict[str, int]:
    """Return {operator: how often} of a ModelProto, subgraphs and functions included, in alphabetic order; other domains in front."""
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    counts = Counter(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}" for node in nodes)
    return dict(sorted(counts.items()))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for below in (attribute.g, *attribute.graphs):
                yield from _nodes(below)


def not_allowed(counts: dict[str, int]) -> list[str]:
    """Return the operators of a graph that are not on the list."""
    return sorted(set(counts) - ALLOWED)
