"""An ONNX file as a module: normalised float pixels in, class and patch tokens out, computed by onnxruntime.

What the graph's outputs mean is declared (`OnnxOutputs`), since a graph has names and shapes alone. A graph of one batch size gets its
batches in parts of that size, the last one filled up with zeros; one of fixed sides takes those and refuses others. On a CUDA device
onnxruntime's own CUDA provider computes, and where that is not installed this is an error, never a silent CPU. A graph computes in the
types that it was written in, whatever autocast says. Large graphs keep their weights in files beside them, which are part of the digest.
Axes: B images, H and W grid, N prefix and patch tokens, D channels.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ...storage.core.errors import BadInput
from ...storage.core.identity import digest, file_sha256

LAYOUTS = ("grid", "map", "sequence")
_INPUT_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxOutputs(NamedTuple):
    """What a graph's input and outputs are, by name."""

    input: str | None
    """The pixels (B, 3, h, w); None: the only input."""
    patch: str
    """The patch tokens, in `layout`."""
    cls: str | None
    """The class token (B, D'); None: made of the patch output, where there is one."""
    layout: str
    """grid: (B, H, W, D), map: (B, D, H, W), sequence: (B, prefix + H·W, D)."""
    prefix_tokens: int
    """Tokens of a sequence before the patch tokens, the class token first."""


class OnnxGraph(nn.Module):
    """A graph whose outputs are declared; raises `BadInput` when it is no graph or has not what is declared."""

    def __init__(self, path: Path, outputs: OnnxOutputs, stride_px: int, cls: str) -> None:
        super().__init__()
        self._path, self._outputs, self._stride_px, self._cls = path, outputs, stride_px, cls
        self._sessions: dict[str, Any] = {}
        self._check(self._session("cpu"))

    @_disable_dynamo
    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return cls (B, D') or None, patch (B, H, W, D), on the pixels' device; raises `BadInput` for sides that it does not take."""
        session = self._session(pixels_BCHW.device.type)
        (wanted,) = [graph_input for graph_input in session.get_inputs() if graph_input.name == self._input]
        self._check_sides(wanted.shape, pixels_BCHW)
        pixels_BCHW = pixels_BCHW.to(_INPUT_TYPES[wanted.type])
        names = [self._outputs.patch] + ([self._outputs.cls] if self._outputs.cls else [])
        fixed = wanted.shape[0] if isinstance(wanted.shape[0], int) else len(pixels_BCHW)
        parts = [self._run(session, names, part, fixed) for part in torch.split(pixels_BCHW, fixed)]
        patch, *cls = (torch.cat(tensors).to(pixels_BCHW.device, torch.float32) for tensors in zip(*parts, strict=True))
        rows, columns = (side // self._stride_px for side in pixels_BCHW.shape[-2:])
        return self._tokens(patch, cls[0] if cls else None, rows, columns)

    def _run(self, session: Any, names: list[str], part_BCHW: Tensor, batch: int) -> list[Tensor]:
        count = len(part_BCHW)
        filled = part_BCHW if count == batch else torch.cat([part_BCHW, part_BCHW.new_zeros((batch - count, *part_BCHW.shape[1:]))])
        arrays = session.run(names, {self._input: filled.contiguous().cpu().numpy()})
        return [torch.from_numpy(array)[:count] for array in arrays]

    def _tokens(self, patch: Tensor, cls: Tensor | None, rows: int, columns: int) -> tuple[Tensor | None, Tensor]:
        """Return the outputs as class token and grid; whatever does not fit is left to the check of shapes that follows."""
        prefix = self._outputs.prefix_tokens
        first = patch[:, 0] if self._outputs.layout == "sequence" and prefix else None
        if self._outputs.layout == "map" and patch.ndim == 4:
            patch = patch.permute(0, 2, 3, 1)
        elif self._outputs.layout == "sequence":
            if patch.ndim != 3 or patch.shape[1] != prefix + rows * columns:
                raise BadInput(
                    f"the output {self._outputs.patch!r} has shape {'×'.join(map(str, patch.shape))}; a sequence of {prefix} prefix tokens "
                    f"and {rows}×{columns} patch tokens is B×{prefix + rows * columns}×D"
                )
            patch = torch.unflatten(patch[:, prefix:], 1, (rows, columns))
        if self._cls == "none":
            return None, patch
        if cls is None:
            return (patch.mean(dim=(1, 2)) if self._cls == "mean of patch tokens" else first), patch
        while cls.ndim > 2 and 1 in cls.shape[1:]:  # (B, 1, D) and (B, D, 1, 1) are class tokens, (B, N, D) is not
            cls = cls.squeeze(1 + list(cls.shape[1:]).index(1))
        return cls, patch

    @property
    def has_fixed_sides(self) -> bool:
        """Whether the graph takes pictures of one size alone."""
        (wanted,) = self._session("cpu").get_inputs()
        return any(isinstance(side, int) for side in wanted.shape[2:])

    @property
    def _input(self) -> str:
        return self._outputs.input or str(self._sessions["cpu"].get_inputs()[0].name)

    def _session(self, device: str) -> Any:
        """Return onnxruntime's session for a kind of device, made once."""
        if device in self._sessions:
            return self._sessions[device]
        runtime = _library("onnxruntime")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device, device)
        if provider not in runtime.get_available_providers():
            raise BadInput(
                f"onnxruntime has no {provider} here, it has {', '.join(runtime.get_available_providers())}: install onnxruntime-gpu in "
                "its place, or let this teacher compute on the processor (--teacher-device NAME=cpu)"
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3  # it warns of each graph that it could have been written better
        try:
            self._sessions[device] = runtime.InferenceSession(str(self._path), options, providers=[provider])
        except Exception as error:  # its own classes, of no common base
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"onnxruntime {runtime.__version__} cannot load {self._path}: {reason}") from error
        return self._sessions[device]

    def _check(self, session: Any) -> None:
        inputs = {graph_input.name: graph_input for graph_input in session.get_inputs()}
        if self._outputs.input not in (None, *inputs):
            raise BadInput(f"{self._path} has no input {self._outputs.input!r}; it has {', '.join(inputs)}")
        if len(inputs) != 1:
            raise BadInput(f"{self._path} has {len(inputs)} inputs ({', '.join(inputs)}); a teacher's graph takes pixels and nothing else")
        outputs = [graph_output.name for graph_output in session.get_outputs()]
        for what, name in (("patch_output", self._outputs.patch), ("cls_output", self._outputs.cls)):
            if name is not None and name not in outputs:
                raise BadInput(f"{self._path} has no output {name!r}, which {what} says; it has {', '.join(outputs)}")
        pixels = inputs[self._input]
        if pixels.type not in _INPUT_TYPES or len(pixels.shape) != 4 or (isinstance(pixels.shape[1], int) and pixels.shape[1] != 3):
            raise BadInput(
                f"the input {self._input!r} of {self._path} is {pixels.type} of shape {'×'.join(map(str, pixels.shape))}; a teacher's "
                "takes normalised float pixels B×3×h×w"
            )

    def _check_sides(self, shape: list[Any], pixels_BCHW: Tensor) -> None:
        fixed, got = shape[2:], list(pixels_BCHW.shape[2:])
        if any(isinstance(want, int) and want != side for want, side in zip(fixed, got, strict=True)):
            raise BadInput(f"{self._path} takes pixels of {'×'.join(map(str, fixed))} px alone, got {got[0]}×{got[1]}")


def onnx_sha256(path: Path) -> str:
    """Return the sha256 of the file's bytes, or of it together with the files of its weights; raise `BadInput` where one is missing."""
    try:
        graph = file_sha256(path)
    except OSError as error:
        raise BadInput(f"the teacher {path} cannot be read: {error.strerror}") from error
    places = sorted(set(_external_places(path)))
    for place in places:
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise BadInput(f"{path} keeps weights in {place!r}, outside of its folder; write it again with its weights beside it")
        if not (path.parent / place).is_file():
            raise BadInput(f"{path} keeps weights in {place}, which is not beside it; put it into {path.parent}")
    return digest([graph, {place: file_sha256(path.parent / place) for place in places}]) if places else graph


def _external_places(path: Path) -> Iterator[str]:
    """Yield where the weights of a graph are that are not in it."""
    onnx = _library("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's, by its implementation
        raise BadInput(f"{path} is not an ONNX file: {' '.join(str(error).split())[:200]}") from error
    for tensor in [*_tensors(model.graph), *(tensor for function in model.functions for tensor in _node_tensors(function.node))]:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all tensors of a graph: its own, those of its nodes, and those of the graphs in its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _tensors(inner)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadInput(f"a teacher in an ONNX file needs {name}; run: pip install 'eupe-pipeline[export]'") from error
