"""The int8 graph as ONNX runtimes like it: weights of linear layers lie as a matrix product takes them.

torch keeps a linear layer's weight (out, in) and turns it in each call. Between a DequantizeLinear and a MatMul that Transpose hides the
int8 weight from a runtime, which then multiplies in floats. Here the int8 numbers are turned once.
"""

from typing import Any

import torch
from torch import fx

_aten: Any = torch.ops.aten


def with_plain_weights(int8: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with each int8 linear layer as a matrix product and a sum; the same numbers."""
    dequantise: Any = torch.ops.quantized_decomposed.dequantize_per_channel.default
    for node in list(int8.graph.nodes):
        if node.target is not _aten.linear.default or node.args[1].target is not dequantise:
            continue
        weight, scales, zeros, _, *rest = node.args[1].args
        name = f"turned_{weight.name}"
        owner, _, last = str(weight.target).rpartition(".")
        int8.register_buffer(name, getattr(int8.get_submodule(owner), last).t().contiguous())
        with int8.graph.inserting_before(node):
            turned = int8.graph.call_function(dequantise, (int8.graph.get_attr(name), scales, zeros, 1, *rest))
            product = int8.graph.call_function(_aten.matmul.default, (node.args[0], turned))
            if len(node.args) > 2 and node.args[2] is not None:
                product = int8.graph.call_function(_aten.add.Tensor, (product, node.args[2]))
        node.replace_all_uses_with(product)
        int8.graph.erase_node(node)
    int8.graph.eliminate_dead_code()
    int8.recompile()
    return int8
