"""The benchmark of a GPU, in small shapes on a CPU: every line of it runs, so that it works when there is a GPU for an hour."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_line_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line.split()[1]: float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("RESULT")}
    assert {f"gpu.train_vitt.{name}" for name in ("images_per_s", "wait_share", "cached/live")} <= set(lines)
    assert all(value > 0 for name, value in lines.items() if "images_per_s" in name or "peak" in name)
    assert set(json.loads(out.read_text())["figures"]) == set(lines)


@pytest.mark.long
def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    code = "import torch; torch.cuda.is_available = lambda: False; from benchmarks.bench_gpu import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode
    assert "bench-gpu needs a CUDA device" in done.stderr
