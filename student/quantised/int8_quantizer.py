"""torchao's part of the scheme: what observes a tensor, what stands in for int8 in training, and which nodes get either.

Imported only where torchao is installed (`scheme`). Activations: int8, one scale and zero point a tensor. Weights: −127 to 127, one scale
an output channel, zero point 0. The output of a convolution or linear layer is quantised as well, because XNNPACK's static kernels give
int8; a ReLU that is its only reader belongs to it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

_aten: Any = torch.ops.aten
LAYERS = (_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding)
RELUS = (_aten.relu.default, _aten.relu_.default)
HEADS = "heads."  # begins the names of weights of heads in a traced `ExportWrapper`


class SimulatedInt8(FakeQuantize):  # type: ignore[misc]  # torchao has no types
    """Rounds a tensor to what int8 can hold, by the range seen so far; its only state is that range.

    The range of weights is that of this very call: a running one would still hold weights of steps before. torchao's own forward keeps
    scales and switches as further buffers, and asks the device for the value of each switch in every call.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the values after int8 and back; the gradient passes where they lay within the range."""
        observer = self.activation_post_process
        if self.is_per_channel:
            observer.reset_min_max_vals()
        observer(values.detach())
        if not bool(torch.isfinite(observer.min_val).all() & torch.isfinite(observer.max_val).all()):
            return values  # torchao fails an assertion here; the loss shows it, and the step is refused with its images
        scale, zero_point = observer.calculate_qparams()
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(
                values, scale, zero_point.to(torch.int32), self.ch_axis, self.quant_min, self.quant_max
            )
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point.to(torch.int32), self.quant_min, self.quant_max)


OBSERVERS: dict[str, tuple[Any, Any]] = {
    "aware": (
        SimulatedInt8.with_args(observer=MovingAverageMinMaxObserver), SimulatedInt8.with_args(observer=PerChannelMinMaxObserver)
    ),
    "calibrate": (HistogramObserver.with_args(), PerChannelMinMaxObserver.with_args()),
    "known": (MinMaxObserver.with_args(), PerChannelMinMaxObserver.with_args()),
}  # fmt: skip
"""By what the ranges come from: (of activations, of weights)."""


class Layer(NamedTuple):
    """A convolution or linear layer of a traced student, before observers are put in."""

    node: fx.Node
    last: fx.Node
    """The ReLU that belongs to it, else the node itself."""


def layers(traced: fx.GraphModule) -> Iterator[Layer]:
    """Yield the student's layers whose weight is a parameter or a constant; a weight that is computed from the picture stays in floats.

    So do heads, which were fitted to tokens of floats and hold few weights.
    """
    for node in traced.graph.nodes:
        is_layer = node.op == "call_function" and node.target in LAYERS and node.args[1].op == "get_attr"
        if is_layer and not str(node.args[1].target).startswith(HEADS):
            users = list(node.users)
            yield Layer(node, users[0] if len(users) == 1 and users[0].target in RELUS else node)


class Int8Quantizer(Quantizer):  # type: ignore[misc]
    """Annotates each layer's input, weight and output; everything else stays in floats."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        activation, weight = OBSERVERS[kind]
        self.activation = QuantizationSpec(torch.int8, activation, -128, 127, torch.per_tensor_affine)
        self.weight = QuantizationSpec(torch.int8, weight, -127, 127, torch.per_channel_symmetric, ch_axis=0)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the nodes; PT2E puts the observers in."""
        for node, last in layers(model):
            inputs = {node.args[0]: self.activation, node.args[1]: self.weight}
            output = self.activation if last is node else None
            node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)
            if last is not node:
                last.meta["quantization_annotation"] = QuantizationAnnotation({}, self.activation, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Refuse nothing: what was not marked stays in floats."""
