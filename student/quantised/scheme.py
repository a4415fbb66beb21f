"""How a student becomes int8, for ONNX Runtime and ExecuTorch alike: torchao's PT2E on a traced graph.

Convolutions and linear layers compute in int8, with weights by output channel and activations by ranges that are fixed beforehand. The
products of attention, softmax, norms, activations and sums stay in floats: they hold none of the weights, and their values spread widest.
A range is called by the weight of its layer and by its side, `encoder.backbone.blocks.0.mlp.fc1.weight/input`, so that what a training has
seen in graphs of several sizes fits the graph of any export.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...storage.core.errors import BadInput
from ..edge.optional_libraries import import_optional
from ..edge.quiet import quiet

DESCRIBED = "int8 convolutions and linear layers: weights per output channel, activations per tensor by fixed ranges"


def require_torchao() -> None:
    """Raise `CannotRunHere` where torchao is not installed."""
    import_optional("torchao.quantization.pt2e.quantize_pt2e")


def prepare(traced: fx.GraphModule, kind: str) -> fx.GraphModule:
    """Put observers into a traced student: `aware` (also round, for training), `calibrate`, or `known` for ranges that are given."""
    require_torchao()
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

    from .int8_quantizer import Int8Quantizer, layers

    if not any(True for _ in layers(traced)):
        raise BadInput("this student has neither convolutions nor linear layers that could be int8; export it in fp32 or fp16")
    with quiet():
        prepared: fx.GraphModule = (prepare_qat_pt2e if kind == "aware" else prepare_pt2e)(traced, Int8Quantizer(kind))
    return prepared


def observers(prepared: fx.GraphModule) -> dict[str, Any]:
    """Return what observes each activation by its range's name; two names share an observer where they are one tensor."""
    from .int8_quantizer import LAYERS, RELUS

    found: dict[str, Any] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_function" or node.target not in LAYERS or node.args[1].op != "call_module":
            continue
        name = str(node.args[1].args[0].target)
        (user,) = node.users
        after = next(iter(user.users)) if user.target in RELUS else user
        for side, observing in (("input", node.args[0]), ("output", after)):
            found.setdefault(f"{name}/{side}", prepared.get_submodule(str(observing.target)))
    return found


def observer_of(module: Any) -> Any:
    """Return the observer within a stand-in for int8, or the observer itself."""
    return getattr(module, "activation_post_process", module)


def read_ranges(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each range as (least, largest); raises `BadInput` where nothing was observed."""
    ranges = {name: torch.stack([observer_of(one).min_val, observer_of(one).max_val]).detach().cpu().clone() for name, one in found.items()}
    if unseen := [name for name, both in ranges.items() if not bool(torch.isfinite(both).all())]:
        raise BadInput(f"the range of {unseen[0]} is not known ({ranges[unseen[0]].tolist()})")
    return ranges


def set_ranges(found: Mapping[str, Any], ranges: Mapping[str, Tensor], where: str) -> None:
    """Give the observers their ranges; raises `BadInput` for ranges of another student."""
    if lacking := sorted(set(found) ^ set(ranges)):
        raise BadInput(f"the int8 ranges in {where} are of another student: {lacking[0]} is in one of the two alone")
    for name, module in found.items():
        observer = observer_of(module)
        least, largest = ranges[name].to(observer.min_val.device)
        observer.min_val, observer.max_val = least.clone(), largest.clone()


def quantise(folded: fx.GraphModule, batches: Iterable[Tensor], ranges: Mapping[str, Tensor] | None, where: str = "") -> fx.GraphModule:
    """Return the int8 graph of a folded student: by the ranges that a training saw, else by those of some batches of pixels."""
    prepared = prepare(folded, "calibrate" if ranges is None else "known")
    with torch.no_grad(), quiet():
        if ranges is not None:
            set_ranges(observers(prepared), ranges, where)
            _observe_weights(prepared)
        for pixels_BCHW in batches if ranges is None else ():
            prepared(pixels_BCHW)
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted: fx.GraphModule = convert_pt2e(prepared)
    return converted


def _observe_weights(prepared: fx.GraphModule) -> None:
    """Show each weight to its observer, which otherwise happens when a picture passes."""
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args[0].op == "get_attr":
            module, name = prepared.get_submodule(str(node.target)), str(node.args[0].target)
            owner, _, last = name.rpartition(".")
            module(getattr(prepared.get_submodule(owner), last))
