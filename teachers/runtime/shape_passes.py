"""Passes on the meta device in half the time: batch norm by its shape alone.

torch computes what batch norm gives on the meta device in Python, with the means of nothing and running statistics that nobody reads: five
milliseconds a layer, half of what a pass through a CNN takes. Here it is a product and a sum, which have its shape and the gradients of
the same tensors. Weights of another width than the input's are refused as torch refuses them, when they are laid along its channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class BatchNormByShape(TorchFunctionMode):
    """Inside the block batch norm has a shape and gradients, and no numbers; any other call is what it was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = _batch_norm if func is functional.batch_norm else func
        return call(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    along = (1, input.shape[1], *[1] * (input.ndim - 2))
    scaled = input * 1 if weight is None else input * weight.view(along)
    return scaled if bias is None else scaled + bias.view(along)
