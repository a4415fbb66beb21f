"""The operators of each student's graph for edge devices, and how far its tokens are from the student's (docs/results/operators.md).

Weights are random, with running statistics that are not those of a start: operators do not depend on the values. Each student is exported
by `export --format onnx --target edge` in fp32 and fp16 into a temporary folder; OpenVINO runs both where it is installed. A student that
cannot be exported has its reason in the place of figures.

    python -m benchmarks.operators_table [NAME=SIZE …] > table.md
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.operators import not_allowed
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.graphs import scaled_difference
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import CannotRunHere, openvino_runner
from eupe_pipeline.student.model.student import Student
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from torch import nn

STUDENTS = {
    "eupe_vitt16": 128, "eupe_convnext_tiny": 128, "timm:repvit_m0_9": 64, "timm:mobilenetv4_conv_small_035": 64, "timm:fastvit_t8": 64,
    "timm:resnet10t": 64, "timm:swin_tiny_patch4_window7_224": 64, "timm:tiny_vit_5m_224": 64, "timm:efficientvit_m0": 256,
    "timm:efficientvit_b0": 64, "timm:edgenext_xx_small": 64, "timm:mobilevitv2_050": 64, "timm:deit_tiny_patch16_224": 64,
    "timm:convnextv2_atto": 64, "timm:efficientnet_lite0": 64, "timm:mixer_s32_224": 224, "timm:test_vit": 64,
    "timm:mobilenetv4_hybrid_medium": 64, "timm:ghostnetv3_050": 64, "eupe_vits16": 128, "eupe_convnext_small": 128, "eupe_vitb16": 128,
    "eupe_convnext_base": 128,
}  # fmt: skip
HEAD = "| student | px | operators | fp32, ORT | fp32, OpenVINO | fp16, ORT | fp16, OpenVINO | largest value | MB fp32, fp16 |"


def make(name: str, size_px: int, folder: Path) -> Path:
    """Return a run with a random student."""
    torch.manual_seed(0)
    encoder = build_encoder({"name": name, "layer_scale": 1.0} if name.startswith("eupe") else name)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_model(Student(encoder, 1, {}), folder / "model", size_px=size_px, targets={})
    return folder


def row(name: str, size_px: int) -> str:
    """Return a student's line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        cells = list[str]()
        facts: dict[str, Any] = {}
        try:
            run = make(name, size_px, Path(folder) / "run")
            encoder, sizes = open_trained(run).encoder, list[str]()
            for precision in ("fp32", "fp16"):
                options = ExportOptions(run, Path(folder) / "out", ("onnx",), target="edge", precision=precision)
                facts = export(options)["written"]["onnx"]
                path = Path(facts["folder"]) / "student.onnx"
                sizes.append(f"{path.stat().st_size / 1e6:.1f}")
                cells += [f"{max(facts['difference by scale'].values()):.1e}", in_openvino(encoder, path, size_px)]
                if precision == "fp32":
                    assert not_allowed(facts["operators"]) == []
                    counts = ", ".join(f"{operator} {count}" for operator, count in facts["operators"].items())
        except BadInput as error:
            return f"| {name} | {size_px} | refused: {error} | | | | | | |"
        return f"| {name} | {size_px} | {counts} | {' | '.join(cells)} | {facts['largest value']:.3g} | {', '.join(sizes)} |"


def in_openvino(encoder: Any, path: Path, size_px: int) -> str:
    """Return the difference by scale on OpenVINO's CPU device, or a dash where it is not installed."""
    try:
        return f"{scaled_difference(encoder, openvino_runner(path), 1, size_px, float('inf')):.1e}"
    except CannotRunHere:
        return "–"


def main() -> None:
    chosen = dict(word.rsplit("=", 1) for word in sys.argv[1:]) or STUDENTS
    sys.stdout.write(f"{HEAD}\n|{'---|' * 9}\n")
    for name, size_px in chosen.items():
        sys.stdout.write(row(name, int(size_px)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
