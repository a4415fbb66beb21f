"""The student as one graph, and what runs it: eager, compiled, ONNX Runtime, OpenVINO, ExecuTorch, LiteRT, Core ML, on float pixels.

Axes: B images, C colours, H and W grid, D channels. A deployed graph takes normalised float32 pixels (B, 3, h, w) and gives two tensors,
`cls` (B, D) and `patch` (B, H, W, D); resizing and normalising stay outside, where a phone has its own means for them. ONNX graphs have
a dynamic batch and dynamic sides; an ExecuTorch program is planned ahead of time for one image of one size. onnx, onnxruntime and
executorch are not dependencies of the package: a missing one is an error that names the extra which brings it.
"""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.tokens import Tokens
from ..edge.optional_libraries import EXTRAS, CannotRunHere, import_optional
from ..heads.chosen import NamedHead, modules_of
from .exportable import exportable_copy

__all__ = [
    "EXTRAS", "CannotRunHere", "ExportWrapper", "Runner", "compiled_runner", "coreml_runner", "eager_runner", "executorch_runner",
    "import_optional", "litert_runner", "onnx_runner", "openvino_runner",
]  # fmt: skip

Runner = Callable[[Tensor], Tokens]
OutputRunner = Callable[[Tensor], Sequence[Tensor]]


class ExportWrapper(nn.Module):
    """Float pixels (B, 3, h, w) → (cls (B, D), patch (B, H, W, D)), and then the outputs of the heads."""

    def __init__(self, encoder: Encoder, heads: Sequence[NamedHead] = ()) -> None:
        super().__init__()
        self.encoder = exportable_copy(encoder)
        self.heads = modules_of(heads) if heads else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return class and patch tokens, and the heads' outputs; a student always has a class token."""
        return self._encode(pixels) if self.heads is None else self.heads(self._encode, pixels)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cls_BD, patch_BHWD = self.encoder(pixels)
        assert cls_BD is not None
        return cls_BD, patch_BHWD


TOKENS = ("cls", "patch")


def output_names(heads: Sequence[NamedHead]) -> tuple[str, ...]:
    """Return the names of a graph's outputs in their order."""
    return (*TOKENS, *(output for one in heads for output in one.outputs))


def eager_runner(encoder: Encoder) -> Runner:
    """Return a runner of the encoder as it is trained, with timm's own rotary embedding: what the graphs are compared with."""

    def run(pixels_BCHW: Tensor) -> Tokens:
        with torch.no_grad():
            tokens: Tokens = encoder(pixels_BCHW)
            return tokens

    return run


def eager_outputs(encoder: Encoder, heads: Sequence[NamedHead]) -> OutputRunner:
    """Return what gives the tokens of the encoder as it is trained, and what the heads make of them."""
    modules = modules_of(heads)

    def run(pixels_BCHW: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = modules(encoder, pixels_BCHW)
            return outputs

    return run


def compiled_runner(encoder: Encoder) -> Runner:
    """Return a runner through torch.compile; the first call of each shape compiles."""
    model = torch.compile(ExportWrapper(encoder), dynamic=False)

    def run(pixels_BCHW: Tensor) -> Tokens:
        with torch.no_grad():
            cls_BD, patch_BHWD = model(pixels_BCHW)
            return Tokens(cls_BD, patch_BHWD)

    return run


def onnx_runner(path: Path, threads: int = 1, *, optimised: bool = True) -> Runner:
    """Return a runner of an ONNX file in onnxruntime's CPU provider; raises BadInput when onnxruntime is not installed.

    `optimised=False` runs the graph as it is written, without the rewrites that onnxruntime makes when it loads one.
    """
    outputs = onnx_outputs(path, TOKENS, threads, optimised=optimised)
    return lambda pixels_BCHW: Tokens(*outputs(pixels_BCHW))


def onnx_outputs(path: Path, names: Sequence[str], threads: int = 1, *, optimised: bool = True) -> OutputRunner:
    """Return what gives some outputs of an ONNX file, by their names, as `onnx_runner` runs it."""
    onnxruntime: Any = import_optional("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0].shape

    def run(pixels_BCHW: Tensor) -> list[Tensor]:
        _need_shape(path, wanted, pixels_BCHW)
        return [torch.from_numpy(output) for output in session.run(list(names), {"pixels": pixels_BCHW.numpy()})]

    return run


def openvino_runner(path: Path, threads: int = 1) -> Runner:
    """Return a runner of an ONNX file on OpenVINO's CPU device in fp32; raises BadInput when openvino is not installed."""
    openvino: Any = import_optional("openvino")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(str(path), "CPU", settings)  # the hint: on some processors it would compute in bf16 by itself
    wanted = [side.get_length() if side.is_static else None for side in model.input(0).get_partial_shape()]

    def run(pixels_BCHW: Tensor) -> Tokens:
        _need_shape(path, wanted, pixels_BCHW)
        outputs = model({"pixels": pixels_BCHW.numpy()})
        return Tokens(*(torch.from_numpy(outputs[name].copy()) for name in ("cls", "patch")))

    return run


def litert_runner(path: Path, threads: int = 1) -> Runner:
    """Return a runner of a `.tflite` in LiteRT's interpreter; raises BadInput when it is not installed."""
    library: Any = import_optional("ai_edge_litert.interpreter")
    interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
    program, wanted = interpreter.get_signature_runner(), [int(side) for side in interpreter.get_input_details()[0]["shape"]]

    def run(pixels_BCHW: Tensor) -> Tokens:
        _need_shape(path, wanted, pixels_BCHW)
        outputs = program(pixels=pixels_BCHW.numpy())
        return Tokens(*(torch.from_numpy(outputs[name].copy()) for name in ("cls", "patch")))

    return run


def coreml_runner(path: Path, threads: int = 1) -> Runner:
    """Return a runner of a Core ML package, which chooses its threads itself; raises CannotRunHere where the system is not Apple's."""
    library: Any = import_optional("coremltools")
    if platform.system() != "Darwin":
        raise CannotRunHere(f"{path.name} is run by Core ML, which macOS and iOS have, not {platform.system()}")
    package = library.models.MLModel(str(path))

    def run(pixels_BCHW: Tensor) -> Tokens:
        outputs = package.predict({"pixels": pixels_BCHW.numpy()})
        return Tokens(*(torch.from_numpy(outputs[name]).float() for name in ("cls", "patch")))

    return run


def _need_shape(path: Path, wanted: Sequence[object], pixels_BCHW: Tensor) -> None:
    """Raise `BadInput` for pixels of another shape than a graph of one shape takes; sides that are no numbers are open."""
    got = tuple(pixels_BCHW.shape)
    if any(isinstance(side, int) and side != side_given for side, side_given in zip(wanted, got, strict=True)):
        shape = "×".join(str(side) for side in wanted)
        raise BadInput(
            f"{path.name} takes pixels of {shape} alone, got {'×'.join(map(str, got))}; export it with --size and --batch for these"
        )


def executorch_runner(path: Path, threads: int = 1) -> Runner:
    """Return a runner of a `.pte` in ExecuTorch's Python runtime, for its own shape; its thread pool is the process's."""
    outputs = executorch_outputs(path, threads)
    return lambda pixels_BCHW: Tokens(*outputs(pixels_BCHW)[: len(TOKENS)])


def executorch_outputs(path: Path, threads: int = 1) -> OutputRunner:
    """Return what gives all outputs of a `.pte`, as `executorch_runner` runs it."""
    runtime: Any = import_optional("executorch.runtime")
    bindings: Any = import_optional("executorch.extension.pybindings.portable_lib")
    bindings._unsafe_reset_threadpool(threads)  # the only way to set it; unsafe while a method runs, none does here
    program = runtime.Runtime.get().load_program(str(path))
    method = program.load_method("forward")

    def run(pixels_BCHW: Tensor) -> list[Tensor]:
        return [output.clone() for output in method.execute([pixels_BCHW.contiguous()])]  # the next call writes over its memory

    return run
