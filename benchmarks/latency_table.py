"""The latency of all six students in every runtime, as the Markdown table of docs/results/latency.md.

Weights are random: time does not depend on them. Each student is exported at 256 px (ONNX, ExecuTorch fp32 and int8) into a temporary
folder and measured by the code behind `eupe-pipeline benchmark latency`. Needs the extras `export` and `executorch`, and a C++ compiler
for torch.compile.

    python benchmarks/latency_table.py --threads 1 --calls 20 > table.md
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.latency import PAPER_IPHONE_MS, LatencyOptions, known_runtimes, latency
from eupe_pipeline.student.model.student import Student
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder

SIZE_PX = 256


def measure(name: str, options: LatencyOptions) -> dict[str, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        save_model(Student(build_encoder(name), 1, {}), run / "model", size_px=SIZE_PX, targets={})
        export(ExportOptions(run, out, ("onnx", "executorch")))
        return latency(replace(options, folder=out))


def row(found: dict[str, Any]) -> str:
    times = [found["runtimes"].get(runtime) for runtime in known_runtimes()]
    cells = [f"{one['cpu_ms']:.1f} ({one['median_ms']:.1f}, {one['p95_ms']:.1f})" if one else "–" for one in times]
    return " | ".join([
        f"| {found['student']}", f"{found['parameters'] / 1e6:.1f}", f"{found['gflops']:.2f}", *cells, f"{found['paper_iphone_ms']} |",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--students", nargs="*", default=list(PAPER_IPHONE_MS))
    given = parser.parse_args()
    heads = ["student", "M parameters", "GFLOPs", *known_runtimes(), "paper, iPhone"]
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    for name in given.students:
        sys.stdout.write(row(measure(name, LatencyOptions(Path(), given.threads, given.warmup, given.calls))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
