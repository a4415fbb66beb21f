"""A traced model of one input shape in which whatever does not depend on the picture was computed once.

torch.export keeps every step that the code takes: rotary tables from the grid, position embeddings resampled to it, biases gathered by
relative position, masks of shifted windows, joined weights. An exporter writes each as chains of Range, Sin, Resize or Gather that edge
compilers refuse, or compute in fp16. Here they are evaluated by torch itself, so the constants are the trained model's bit for bit.
Attention is written as two matrix products and a softmax: the operator of its own is newer than the runtimes that devices have.
The price: shape and batch are fixed, and a table takes its place in the file.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

_attention: Any = torch.ops.aten.scaled_dot_product_attention.default


def fold_constants(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return the traced module for inputs of exactly the example's shape; raises what torch.export does where it cannot trace."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside torch
        program = torch.export.export(module, (example,)).run_decompositions({_attention: plain_attention})
        traced: Any = program.module(check_guards=False)
        _fold(traced)
    return traced  # type: ignore[no-any-return]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Return softmax(q·kᵀ·scale + mask)·v by plain operators; the query is scaled first, which keeps products small in fp16."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    logits = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return torch.matmul(torch.softmax(logits if attn_mask is None else logits + attn_mask, -1), value)


def _fold(traced: fx.GraphModule) -> None:
    """Replace each tensor that the input does not reach by its value."""
    known = _constants(traced)
    for source, value in known.items():
        users = [user for user in source.users if user not in known]
        if users and source.op != "get_attr" and isinstance(value, Tensor):
            name = f"constant_{source.name}"
            traced.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format), persistent=False)
            with traced.graph.inserting_before(source):
                constant = traced.graph.get_attr(name)
            for user in users:
                user.replace_input_with(source, constant)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()


def _constants(traced: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return {node: value} of all that weights and constants alone decide; random numbers never are."""
    known: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(traced, str(node.target))
        elif node.op == "call_function" and all(source in known for source in node.all_input_nodes):
            target: Any = node.target
            if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
                continue
            values = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = target(*values[0], **values[1])
    return known


def _attribute(module: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        module = getattr(module, name)
    return module


class _Recorder(fx.Interpreter):
    """Runs a traced module and keeps the largest finite size of what each step gave."""

    largest = (0.0, "")

    def run_node(self, n: fx.Node) -> Any:
        """Run one step."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            size = float(torch.where(result.isfinite(), result, 0).abs().max())
            if size > self.largest[0]:
                self.largest = size, str(n.target)
        return result


def largest_value(traced: fx.GraphModule, pixels_BCHW: Tensor) -> tuple[float, str]:
    """Return (largest absolute value of any step, the step's operator) for a batch: what fp16 has to hold."""
    recorder = _Recorder(traced)
    with torch.no_grad():
        recorder.run(pixels_BCHW)
    return recorder.largest
