"""The student written as ONNX graphs and as ExecuTorch programs for XNNPACK, each run once against the original before it counts.

ONNX: torch.export with a dynamic batch and dynamic sides (in steps of the stride), checked in onnxruntime at other sizes than it was traced
at; for edge devices of one shape (`student.edge`), checked by the scale of the tokens. ExecuTorch: one image of one size, fp32, and int8 by
PT2E: weights per output channel, activations per call from their own range.
This dynamic kind needs no calibration images, so an export stays a function of the weights; its price is a pass over each activation,
and that convolutions stay fp32 (XNNPACK's dynamic kernels are for linear layers, which hold 93 % or more of every student's weights).
`--precision int8` is the static kind, for both (`student.quantised`): by ranges that pictures or a training have given, checked by cosines.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, size_hw, size_text
from ...teachers.encoders.architectures import TIMM_STUDENT
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.tokens import Tokens
from ...teachers.registry.canary import canary_images
from ..edge.choice import GraphChoice
from ..edge.coreml import check_structure, write_coreml
from ..edge.fold import fold_constants, largest_value
from ..edge.half import LARGEST
from ..edge.litert import count_operations, write_litert
from ..edge.onnx_graph import name_outputs, write_graph
from ..edge.operators import OPSET as EDGE_OPSET
from ..edge.quiet import quiet
from ..heads.chosen import NamedHead
from ..heads.documents import HEADS_IN_INT8
from ..heads.modules import KINDS
from ..quantised.agreement import compare_int8, in_batches
from ..quantised.plain_weights import with_plain_weights
from ..quantised.scheme import DESCRIBED, quantise
from .lineage import Trained
from .runtimes import (
    TOKENS,
    CannotRunHere,
    ExportWrapper,
    OutputRunner,
    Runner,
    coreml_runner,
    eager_outputs,
    eager_runner,
    executorch_outputs,
    executorch_runner,
    import_optional,
    litert_runner,
    onnx_outputs,
    onnx_runner,
    output_names,
)

MAX_DIFFERENCE = 1e-3
"""Largest absolute difference of an fp32 graph's tokens that is put down to another order of adding."""
HEADS_LIMIT = 1e-3
"""The same for the outputs of heads, as a share of their root mean square."""
SCALED_LIMIT = 1e-4
"""Largest difference of an fp32 edge graph's tokens, as a share of their root mean square."""
HALF_LIMIT = 0.05
"""The same for fp16, whose numbers have eleven bits: the sum of what every step rounds off, measured for each export."""
OPSET = 23  # the newest that torch's exporter has operators of its own for
LONGEST_SIDE_TOKENS = 256
CANARIES = 8


def write_onnx(encoder: Encoder, size_px: SizePx, path: Path, heads: Sequence[NamedHead] = ()) -> dict[str, Any]:
    """Write the graph and return its facts; raises BadInput without onnx or when its tokens are not the encoder's.

    Some of timm's models cannot be traced with open sides, or are right at one size alone: their graph has the sides fixed.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(library)
    stride = encoder.stride_px
    if any(KINDS[one.kept.kind].one_size for one in heads):
        return _write_one_size_onnx(encoder, size_px, path, heads, "a detector has the places of its size")
    if encoder.architecture["name"] != TIMM_STUDENT:
        return _write_open_onnx(encoder, size_px, path, heads)
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, 3 * stride, 5 * stride))
        return _write_open_onnx(encoder, size_px, path, heads)
    except Exception as error:  # noqa: BLE001 - torch's exporter raises what each operator happens to
        why = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return _write_one_size_onnx(encoder, size_px, path, heads, why)


def _write_one_size_onnx(encoder: Encoder, size_px: SizePx, path: Path, heads: Sequence[NamedHead], why: str) -> dict[str, Any]:
    refuse_other_sizes(heads, size_px)
    opset = _trace(encoder, path, (2, *size_hw(size_px)), {"pixels": {0: _open_batch()}}, heads)
    differences = _differences(encoder, path, [(1, *size_hw(size_px)), (3, *size_hw(size_px))])
    facts = _of_heads(encoder, heads, onnx_outputs(path, output_names(heads)), [_pixels(encoder, 3, *size_hw(size_px))], HEADS_LIMIT)
    sides = f"{size_text(size_px)} px alone: {why}"
    return {"opset": opset, "max_abs_difference": differences, "dynamic": "batch", "sides": sides, **facts}


def _write_open_onnx(encoder: Encoder, size_px: SizePx, path: Path, heads: Sequence[NamedHead]) -> dict[str, Any]:
    stride = encoder.stride_px  # the image is traced with sides 4 and 6: a 1, or equal sides, would become constants
    opset = _trace(encoder, path, (2, 4 * stride, 6 * stride), _dynamic_shapes(stride), heads)
    shapes = [(1, *size_hw(size_px)), (2, 3 * stride, 5 * stride)]
    differences = _differences(encoder, path, shapes)
    pixels = [_pixels(encoder, *shape) for shape in shapes]
    facts = _of_heads(encoder, heads, onnx_outputs(path, output_names(heads)), pixels, HEADS_LIMIT)
    return {"opset": opset, "max_abs_difference": differences, "dynamic": "batch, height and width", **facts}


def refuse_other_sizes(heads: Sequence[NamedHead], size_px: SizePx) -> None:
    """Raise `BadInput` for a graph of one size with a head that was measured at another: its figure would not be this graph's."""
    for one in heads:
        if one.size_px is not None and one.size_px != size_px:
            taken, measured = size_text(size_px), size_text(one.size_px)
            raise BadInput(
                f"the head {one.name} was measured at {measured} px and this graph takes {taken} px alone, where it is another head; "
                f"export with --size {measured}, or evaluate {one.kept.kind} with --size {taken}"
            )


def _of_heads(encoder: Encoder, heads: Sequence[NamedHead], run: OutputRunner, batches: Sequence[Tensor], limit: float) -> dict[str, Any]:
    """Return {"heads": each output's largest difference over the root mean square of what the heads give eagerly}; {} without heads.

    Raises `BadInput` above the limit.
    """
    if not heads:
        return {}
    eager, names, worst = eager_outputs(encoder, heads), output_names(heads)[len(TOKENS) :], dict[str, float]()
    for pixels_BCHW in batches:
        for name, computed, right in zip(names, run(pixels_BCHW)[len(TOKENS) :], eager(pixels_BCHW)[len(TOKENS) :], strict=True):
            same_shape = computed.shape == right.shape
            quotient = (computed - right).abs().max() / right.square().mean().sqrt() if same_shape else torch.tensor(torch.inf)
            worst[name] = max(worst.get(name, 0.0), float(quotient.nan_to_num(torch.inf)))
    if over := [f"{name} by {difference:.2g}" for name, difference in worst.items() if not difference <= limit]:
        raise BadInput(f"the exported graph's heads give other outputs than the trained ones: {', '.join(over)} of their root mean square, "
                       f"at most {limit:g} is allowed")  # fmt: skip
    return {"heads": {"difference by scale": worst, "limit of the difference": limit}}


def write_edge_onnx(encoder: Encoder, size_px: SizePx, path: Path, choice: GraphChoice, heads: Sequence[NamedHead] = ()) -> dict[str, Any]:
    """Write a graph of one shape and return its facts; raises BadInput for operators or values that devices have not, or other tokens."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(library)
    refuse_other_sizes(heads, size_px)
    folded, pixels_BCHW, facts = _prepared(encoder, size_px, choice, heads)
    names, half = output_names(heads), choice.precision == "fp16"
    operators = write_graph(folded, pixels_BCHW, path, half=half, outputs=names)
    opened = {"onnxruntime": onnx_runner(path), "onnxruntime, not optimised": onnx_runner(path, optimised=False)}
    compared = _compared(encoder, opened, choice, size_px)
    batches = _batches(encoder, choice.batch, size_px)
    compared |= _of_heads(encoder, heads, onnx_outputs(path, names), batches, HALF_LIMIT if half else HEADS_LIMIT)
    return {"target": choice.target, "opset": EDGE_OPSET, **facts, **compared, "operators": operators}


def write_int8_onnx(trained: Trained, path: Path, choice: GraphChoice) -> dict[str, Any]:
    """Write an int8 graph of one shape and return its facts; raises BadInput without torchao, and where its tokens turn elsewhere."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(library)
    int8, pixels_BCHW, facts = _int8_student(trained, choice.batch)
    names = output_names(trained.heads)
    with quiet():
        operators = write_graph(with_plain_weights(int8), pixels_BCHW, path, half=False, outputs=names)
    compared = _compared_int8(trained, onnx_outputs(path, names), choice.batch)
    return {"target": choice.target, "opset": EDGE_OPSET, **facts, **compared, "operators": operators}


def write_int8_executorch(trained: Trained, path: Path) -> dict[str, Any]:
    """Write an int8 program for one image and return its facts; raises BadInput as `write_int8_onnx` does."""
    lower: Any = import_optional("executorch.exir").to_edge_transform_and_lower
    partition: Any = import_optional("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    int8, pixels_BCHW, facts = _int8_student(trained, 1)
    with quiet():
        program = lower(torch.export.export(int8, (pixels_BCHW,)), partitioner=[partition.XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)
    return {**facts, **_compared_int8(trained, executorch_outputs(path), 1)}


def _int8_student(trained: Trained, batch: int) -> tuple[torch.fx.GraphModule, Tensor, dict[str, Any]]:
    """Return (int8 graph of one shape, pixels of that shape, facts)."""
    sample, encoder, size_px = trained.sample, trained.encoder, trained.preprocessing.size_px
    assert sample is not None  # `export` has drawn it
    refuse_other_sizes(trained.heads, size_px)
    pixels_BCHW = _batches(encoder, batch, size_px)[0]
    measured = in_batches(encoder.preprocessing, sample.measured_BHWC, batch)
    int8 = quantise(fold_student(encoder, pixels_BCHW, trained.heads), measured, trained.int8_ranges, str(trained.run))
    ranges = f"measured on {len(sample.measured_BHWC)} {sample.source}" if trained.int8_ranges is None else "of the run's last phase"
    facts = {"input": "x".join(map(str, pixels_BCHW.shape)), "precision": "int8", "quantisation": DESCRIBED, "ranges": ranges}
    return int8, pixels_BCHW, {**facts, "compared on": f"{len(sample.compared_BHWC)} other {sample.source}"}


def _compared_int8(trained: Trained, run: OutputRunner, batch: int) -> dict[str, Any]:
    assert trained.sample is not None
    batches = in_batches(trained.encoder.preprocessing, trained.sample.compared_BHWC, batch)
    heads = {one.name: KINDS[one.kept.kind].classes for one in trained.heads}
    tokens, predicted = compare_int8(eager_outputs(trained.encoder, trained.heads), run, batches, heads)
    return {**tokens, HEADS_IN_INT8: predicted} if heads else tokens


def write_coreml_package(encoder: Encoder, size_px: SizePx, path: Path, choice: GraphChoice) -> dict[str, Any]:
    """Write a Core ML package and return its facts; its tokens are compared on macOS, its structure everywhere. Raises BadInput."""
    with quiet():
        import_optional("coremltools")
    half = choice.precision == "fp16"
    folded, pixels_BCHW, facts = _prepared(encoder, size_px, choice)
    write_coreml(folded, pixels_BCHW, path, half=half)
    operations = check_structure(path, folded, pixels_BCHW, half=half)
    try:
        facts |= _compared(encoder, {"Core ML": coreml_runner(path)}, choice, size_px)
    except CannotRunHere as error:
        facts["tokens"] = f"not compared: {error}"
    return {**facts, "structure": "inputs, outputs and bytes of weights as the student's", "operations": operations}


def write_litert_program(encoder: Encoder, size_px: SizePx, path: Path, choice: GraphChoice) -> dict[str, Any]:
    """Write a LiteRT program and return its facts; raises BadInput without litert-torch or when its tokens are not the encoder's."""
    with quiet():
        import_optional("litert_torch")
    folded, pixels_BCHW, facts = _prepared(encoder, size_px, choice)
    write_litert(folded, pixels_BCHW, path)
    return {**facts, **_compared(encoder, {"LiteRT": litert_runner(path)}, choice, size_px), "operations": count_operations(path)}


def _prepared(
    encoder: Encoder, size_px: SizePx, choice: GraphChoice, heads: Sequence[NamedHead] = ()
) -> tuple[torch.fx.GraphModule, Tensor, dict[str, Any]]:
    """Return (student of one shape, pixels of that shape, facts); raises BadInput where fp16 is asked for and cannot hold its values."""
    batches = _batches(encoder, choice.batch, size_px)
    folded = fold_student(encoder, batches[0], heads)
    facts: dict[str, Any] = {"input": "x".join(map(str, batches[0].shape)), "precision": choice.precision}
    if choice.precision == "fp16":
        size, where = max(largest_value(folded, pixels_BCHW) for pixels_BCHW in batches)
        if size > LARGEST:
            raise BadInput(f"values of this student reach {size:.3g} (in {where}), and fp16 ends at {LARGEST:g}; export in fp32")
        facts["largest value"] = size
    return folded, batches[0], facts


def _compared(encoder: Encoder, runners: Mapping[str, Runner], choice: GraphChoice, size_px: SizePx) -> dict[str, Any]:
    """Return the difference of each runner's tokens from the encoder's, and the limit; raises BadInput above it."""
    limit = HALF_LIMIT if choice.precision == "fp16" else SCALED_LIMIT
    differences = {name: scaled_difference(encoder, run, choice.batch, size_px, limit) for name, run in runners.items()}
    return {"difference by scale": differences, "limit of the difference": limit}


def fold_student(encoder: Encoder, pixels_BCHW: Tensor, heads: Sequence[NamedHead] = ()) -> torch.fx.GraphModule:
    """Return the student traced at one shape; raises BadInput for a student that has no tokens there, or that torch cannot trace."""
    try:
        eager_runner(encoder)(pixels_BCHW)
        return fold_constants(ExportWrapper(encoder, heads), pixels_BCHW)
    except Exception as error:  # models and torch's tracer raise what each operator happens to
        shape, why = "×".join(map(str, pixels_BCHW.shape)), str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise BadInput(
            f"this student cannot be traced at {shape}: {why}; choose another --size, or the size that it was trained at"
        ) from error


def compare_folder(
    encoder: Encoder, size_px: SizePx, heads: Sequence[NamedHead], run: Callable[[Tensor], Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Return how far the outputs by name of another library are from the encoder's and the heads'; raises `BadInput` above the limits."""
    names, pixels_BCHW = output_names(heads), _pixels(encoder, 2, *size_hw(size_px))
    found = run(pixels_BCHW)
    worst = max_difference(Tokens(found["cls"], found["patch"]), eager_runner(encoder)(pixels_BCHW))
    if not worst <= MAX_DIFFERENCE:
        raise BadInput(f"the exported folder gives other tokens than the student: up to {worst:.2g}")
    facts = _of_heads(encoder, heads, lambda _: [found[name] for name in names], [pixels_BCHW], HEADS_LIMIT)
    return {"max_abs_difference": worst, **facts}


def _batches(encoder: Encoder, batch: int, size_px: SizePx) -> list[Tensor]:
    """Return normalised canary pictures in batches of one size, eight pictures or one batch."""
    pixels_BCHW = _pixels(encoder, -(-CANARIES // batch) * batch, *size_hw(size_px))
    return list(torch.split(pixels_BCHW, batch))


def scaled_difference(encoder: Encoder, run: Runner, batch: int, size_px: SizePx, limit: float) -> float:
    """Return the largest difference of a graph's tokens over the root mean square of the encoder's; raises BadInput above the limit.

    Class and patch tokens have their own scale each; the larger quotient counts. A value that is no number is above every limit.
    """
    worst = 0.0
    for pixels_BCHW in _batches(encoder, batch, size_px):
        for computed, wanted in zip(run(pixels_BCHW), eager_runner(encoder)(pixels_BCHW), strict=True):
            assert computed is not None
            assert wanted is not None
            if computed.shape != wanted.shape:
                raise BadInput(f"the exported graph gives tokens of {tuple(computed.shape)}, the student of {tuple(wanted.shape)}")
            worst = max(worst, ((computed - wanted).abs().max() / wanted.square().mean().sqrt()).nan_to_num(torch.inf).item())
    if not worst <= limit:
        raise BadInput(
            f"the exported graph gives other tokens than the student: they differ by up to {worst:.2g} of the tokens' root mean square, "
            f"at most {limit:g} is allowed"
        )
    return worst


def _trace(encoder: Encoder, path: Path, example: tuple[int, int, int], dynamic_shapes: dict[str, Any], heads: Sequence[NamedHead]) -> int:
    """Write the graph of an example (batch, height, width) and return its opset."""
    batch, height, width = example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            ExportWrapper(encoder, heads),
            (torch.zeros(batch, 3, height, width),),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            dynamic_shapes=dynamic_shapes,
            input_names=["pixels"],
        )
        assert program is not None
        name_outputs(program.model, output_names(heads))
        program.save(str(path))
    return int(program.model.opset_imports[""] or 0)


def _differences(encoder: Encoder, path: Path, shapes: list[tuple[int, int, int]]) -> dict[str, float]:
    """Return how far a graph's tokens are from the encoder's at each (batch, height, width); raises BadInput above MAX_DIFFERENCE."""
    run = onnx_runner(path)
    return {f"{b}x3x{h}x{w}": _check_close(encoder, run, b, h, w) for b, h, w in shapes}


def _open_batch() -> Any:
    return torch.export.Dim("batch", min=1, max=65_536)


def _dynamic_shapes(stride_px: int) -> dict[str, Any]:
    """Return the dynamic dimensions of the input: any batch, both sides in steps of the stride."""
    dim = torch.export.Dim
    rows, columns = (stride_px * dim(name, min=1, max=LONGEST_SIDE_TOKENS) for name in ("rows", "columns"))
    return {"pixels": {0: _open_batch(), 2: rows, 3: columns}}


def write_executorch(encoder: Encoder, size_px: SizePx, path: Path, *, int8: bool, heads: Sequence[NamedHead] = ()) -> dict[str, Any]:
    """Write the program and return its facts; raises BadInput without executorch or when an fp32 program's tokens differ."""
    lower: Any = import_optional("executorch.exir").to_edge_transform_and_lower
    partition: Any = import_optional("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    refuse_other_sizes(heads, size_px)
    example = (_pixels(encoder, 1, *size_hw(size_px)),)
    partitioners = [partition.XnnpackPartitioner()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao and executorch warn of their own deprecations
        program = torch.export.export(ExportWrapper(encoder, heads), example)
        if int8:
            program = torch.export.export(_quantised(program, example), example)
            partitioners.insert(0, partition.XnnpackDynamicallyQuantizedPartitioner())
        path.write_bytes(lower(program, partitioner=partitioners).to_executorch().buffer)
    run = executorch_runner(path)
    if int8:
        return {"quantisation": "weights int8 per channel, activations int8 per call", **_agreement(encoder, run, size_px)}
    facts = _of_heads(encoder, heads, executorch_outputs(path), _batches(encoder, 1, size_px), HEADS_LIMIT)
    return {"max_abs_difference": _check_close(encoder, run, 1, *size_hw(size_px)), **facts}


def _quantised(program: torch.export.ExportedProgram, example: tuple[Tensor, ...]) -> nn.Module:
    """Return the program with int8 linear layers (PT2E): weights by output channel, activations by their range in each call."""
    quantizers: Any = import_optional("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e: Any = import_optional("torchao.quantization.pt2e.quantize_pt2e")
    config = quantizers.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = quantizers.XNNPACKQuantizer().set_module_type(nn.Linear, config)
    prepared = pt2e.prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        prepared(*example)
    converted: nn.Module = pt2e.convert_pt2e(prepared)
    return converted


def _pixels(encoder: Encoder, batch: int, height_px: int, width_px: int) -> Tensor:
    """Return normalised canary images (batch, 3, height_px, width_px)."""
    side = max(height_px, width_px)
    bytes_BHWC = torch.from_numpy(canary_images(batch, side)[:, :height_px, :width_px].copy())
    return encoder.preprocessing.apply(bytes_BHWC).contiguous()


def _check_close(encoder: Encoder, run: Runner, batch: int, height_px: int, width_px: int) -> float:
    """Return the largest difference of the graph's tokens from the encoder's at one shape; raises BadInput above MAX_DIFFERENCE."""
    pixels_BCHW = _pixels(encoder, batch, height_px, width_px)
    worst = max_difference(run(pixels_BCHW), eager_runner(encoder)(pixels_BCHW))
    if not worst <= MAX_DIFFERENCE:
        raise BadInput(f"the exported graph gives other tokens than the student at {height_px}×{width_px} px: up to {worst:.2g}")
    return worst


def _agreement(encoder: Encoder, run: Runner, size_px: SizePx) -> dict[str, float]:
    """Return the least cosines over eight canary images: what quantisation costs, before any task is evaluated."""
    reference, cosines = eager_runner(encoder), dict[str, float]()
    for pixels_CHW in _pixels(encoder, CANARIES, *size_hw(size_px)):
        for name, exported, original in zip(("cls", "patch"), run(pixels_CHW[None]), reference(pixels_CHW[None]), strict=True):
            assert exported is not None
            assert original is not None
            cosine = nn.functional.cosine_similarity(exported.flatten(0, -2), original.flatten(0, -2), dim=-1)
            least = cosine.min() if name == "cls" else cosine.mean()
            cosines[name] = min(cosines.get(name, 1.0), least.item())
    return {"least_cls_cosine": cosines["cls"], "least_mean_patch_cosine": cosines["patch"]}


def max_difference(first: Tokens, second: Tokens) -> float:
    """Return the largest absolute difference between two sets of tokens, class and patch."""
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True) if a is not None and b is not None)
