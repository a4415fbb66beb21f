"""ONNX files to test with: a run's model as our exporter writes it, and what is declared of its outputs."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
import torch
from eupe_pipeline.student.export.graphs import write_onnx
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from .conftest import make_run

DECLARED: dict[str, Any] = {
    "name": "my-graph", "size_px": 32, "stride_px": 8, "cls": "class token", "input": "pixels", "patch_output": "patch",
    "cls_output": "cls",
}  # fmt: skip


@lru_cache(maxsize=1)
def exported_graph() -> bytes:
    """The graph of `make_run(…, "vit-mini", 32)`, written once in a process: torch's exporter takes its time."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", "vit-mini", 32)
        write_onnx(load_teacher(resolve_teacher(str(run))).encoder, 32, Path(folder) / "student.onnx")
        return (Path(folder) / "student.onnx").read_bytes()


def declare(path: Path, **changes: Any) -> str:
    """Write FILE.toml beside a graph; None leaves a key out. Returns the teacher's name."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**DECLARED, **changes}.items() if value is not None]
    path.with_suffix(".toml").write_text("\n".join(lines) + "\n")
    return str(path)


def small_graph(path: Path, batch: int | str = "b", side: int | str = "s", half: bool = False) -> Path:
    """A graph of one convolution (stride 8, 5 channels) with its output in three layouts, and its mean; side: a number fixes it."""
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    weight = (
        (torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1).to(torch.float16 if half else torch.float32).numpy()
    )
    helper, rows = onnx.helper, side // 8 if isinstance(side, int) else "r"
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["map"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Transpose", ["map"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["map", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "one"], ["token"]),
        helper.make_node("Concat", ["token", "tokens"], ["sequence"], axis=1),
        helper.make_node("GlobalMaxPool", ["map"], ["largest"]),
    ]
    outputs = {"map": [batch, 5, rows, rows], "grid": [batch, rows, rows, 5], "sequence": [batch, "n", 5], "largest": [batch, 5, 1, 1]}
    constants = {"weight": weight, "flat": torch.tensor([0, 5, -1]).numpy(), "one": torch.tensor([0, 1, 5]).numpy()}
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("image", kind, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
