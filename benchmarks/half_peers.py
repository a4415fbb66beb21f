"""Our fp16 conversion of edge graphs beside onnxruntime's own (`onnxruntime.transformers.float16`), on some students.

For each: bytes, nodes, casts, whether onnx's checker accepts the graph, and the difference by scale in onnxruntime and OpenVINO, or why it
does not load there. onnxruntime's is measured as it is by default, and with the operators in fp32 that ours keeps so.

    python -m benchmarks.half_peers [NAME=SIZE …] > table.md
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from eupe_pipeline.student.edge.fold import fold_constants
from eupe_pipeline.student.edge.half import FLOAT32_OPERATORS, to_half
from eupe_pipeline.student.edge.onnx_graph import write_graph
from eupe_pipeline.student.edge.operators import count_operators
from eupe_pipeline.student.export.graphs import scaled_difference
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import CannotRunHere, Runner, onnx_runner, openvino_runner

from .operators_table import make

STUDENTS = {"timm:test_vit": 64, "timm:repvit_m0_9": 64, "timm:edgenext_xx_small": 64, "timm:efficientnet_lite0": 64, "eupe_vitt16": 64}
HEAD = "| student | conversion | MB | nodes | casts | onnx's checker | onnxruntime | OpenVINO |"


def theirs(model: Any, *blocked: str) -> Any:
    """Return onnxruntime's conversion, with further operators left in fp32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    copied = onnx.ModelProto.FromString(model.SerializeToString())  # it changes what it gets
    return convert_float_to_float16(copied, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *blocked])


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "ours": to_half,
    "onnxruntime's": theirs,
    "onnxruntime's, norms in fp32": lambda model: theirs(model, *sorted(FLOAT32_OPERATORS)),
}


def rows(name: str, size_px: int) -> list[str]:
    """Return a student's lines of the table."""
    import torch

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = open_trained(make(name, size_px, Path(folder) / "run")).encoder.eval()
        pixels_BCHW, path = torch.zeros(1, 3, size_px, size_px), Path(folder) / "graph.onnx"
        write_graph(fold_constants(encoder, pixels_BCHW), pixels_BCHW, path, half=False)
        model = onnx.load(str(path))
        for title, convert in CONVERSIONS.items():
            half = convert(model)
            onnx.save_model(half, str(path))
            counts, size = count_operators(half), path.stat().st_size / 1e6
            checks = "accepts it" if accepted(half) else "refuses it"
            found = [difference(encoder, opened, path, size_px) for opened in (onnx_runner, openvino_runner)]
            lines.append(f"| {name} | {title} | {size:.2f} | {sum(counts.values())} | {counts['Cast']} | {checks} | {' | '.join(found)} |")
    return lines


def accepted(model: Any) -> bool:
    """Return whether onnx's checker finds no fault."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def difference(encoder: Any, opened: Callable[[Path], Runner], path: Path, size_px: int) -> str:
    """Return the difference by scale in a runtime."""
    try:
        return f"{scaled_difference(encoder, opened(path), 1, size_px, float('inf')):.1e}"
    except CannotRunHere:
        return "–"
    except Exception:  # noqa: BLE001 - each runtime has errors of its own
        return "does not load"


def main() -> None:
    chosen = dict(word.rsplit("=", 1) for word in sys.argv[1:]) or STUDENTS
    sys.stdout.write(f"{HEAD}\n|{'---|' * 8}\n")
    for name, size_px in chosen.items():
        sys.stdout.write("\n".join(rows(name, int(size_px))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
