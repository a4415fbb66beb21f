"""An ONNX graph in fp16: weights and activations in half precision, pixels in and tokens out in fp32, sums over many values in fp32.

The conversion comes after constants were folded and batch norms merged into convolutions, so those were computed in fp32. Norms and means
stay fp32 between two casts, because devices that add in fp16 overflow in a sum of squares which is finite in the end. A weight that fp16
cannot hold is an error; one below 6e-8 becomes zero, and what that costs is measured with everything else (a ConvNeXt's layer scale of
1e-6 keeps four bits).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput

LARGEST = 65_504.0
"""The largest number of fp16."""
FLOAT32_OPERATORS = frozenset({"LayerNormalization", "InstanceNormalization", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"})
"""What sums over many values."""
FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX itself wants as fp32: a Resize's region and scales."""
_HALF = "__half"


def to_half(model: Any) -> Any:
    """Return the fp16 graph of an fp32 ModelProto; raises BadInput when a weight is above 65504."""
    import onnx

    source = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    converter = _Converter(source.graph)
    nodes = [*converter.nodes(), *(node for output in source.graph.output for node in converter.wide(output.name))]
    del source.graph.node[:], source.graph.value_info[:], source.graph.initializer[:]
    source.graph.node.extend(nodes)
    source.graph.initializer.extend(converter.tensors.values())
    return onnx.shape_inference.infer_shapes(source, strict_mode=True, check_type=True)


class _Converter:
    """Writes the nodes anew. A value is called as before in fp32, and with `_HALF` behind its name in fp16."""

    def __init__(self, graph: Any) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.float, self.half, self.helper, self.numpy = TensorProto.FLOAT, TensorProto.FLOAT16, helper, numpy_helper
        self.graph = graph
        self.weights = {weight.name: weight for weight in graph.initializer}
        typed = [*graph.value_info, *graph.input, *graph.output]
        kinds = {value.name: value.type.tensor_type.elem_type for value in typed} | {
            value.name: value.data_type for value in graph.initializer
        }
        self.floats = {name for name, kind in kinds.items() if kind == self.float}
        self.tensors = {name: weight for name, weight in self.weights.items() if name not in self.floats}
        self.made = {value.name for value in graph.input}

    def nodes(self) -> Iterator[Any]:
        """Yield the graph's nodes with the casts between them."""
        import onnx

        for node in self.graph.node:
            if node.op_type == "Constant" and node.output[0] in self.floats:
                value = self.helper.get_node_attr_value(node, node.attribute[0].name)
                array = self.numpy.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value, np.float32)
                self.weights[node.output[0]] = self.numpy.from_array(array, node.output[0])
                continue
            stays = node.op_type in FLOAT32_OPERATORS
            inputs = list[str]()
            for place, name in enumerate(node.input):
                wide = stays or place in FLOAT32_INPUTS.get(node.op_type, ())
                if name in self.floats:
                    yield from self.wide(name) if wide else self.narrow(name)
                inputs.append(name if wide or name not in self.floats else name + _HALF)
            new = onnx.NodeProto()
            new.CopyFrom(node)
            del new.input[:], new.output[:]
            new.input.extend(inputs)
            new.output.extend(name if stays or name not in self.floats else name + _HALF for name in node.output)
            if node.op_type == "Cast" and node.output[0] in self.floats:
                (to,) = [attribute for attribute in new.attribute if attribute.name == "to"]
                to.i = self.half
            self.made |= set(new.output)
            yield new

    def wide(self, name: str) -> Iterator[Any]:
        """Make sure that a value is there in fp32; yields the cast that makes it."""
        if name in self.weights:
            self.tensors[name] = self.weights[name]
        elif name not in self.made:
            yield self._cast(name + _HALF, name, self.float)

    def narrow(self, name: str) -> Iterator[Any]:
        """Make sure that a value is there in fp16; yields the cast that makes it."""
        if name in self.weights:
            if name + _HALF not in self.tensors:
                self.tensors[name + _HALF] = self.numpy.from_array(_as_half(name, self.numpy.to_array(self.weights[name])), name + _HALF)
        elif name + _HALF not in self.made:
            yield self._cast(name, name + _HALF, self.half)

    def _cast(self, source: str, target: str, to: int) -> Any:
        self.made.add(target)
        return self.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _as_half(name: str, array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    finite = array[np.isfinite(array)]
    if finite.size and np.abs(finite).max() > LARGEST:
        raise BadInput(f"the weight {name} holds {np.abs(finite).max():.3g}, and fp16 ends at {LARGEST:g}; export in fp32")
    return array.astype(np.float16)
