"""The check of a machine with a GPU, in small shapes on a CPU: every part runs, so that a day with a GPU costs one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpu_wheels import LACKING, pinned

ROOT = Path(__file__).parents[1]


def check(out: Path, *more: str, code: str | None = None) -> "subprocess.CompletedProcess[str]":
    start = ["-m", "benchmarks.gpu_check"] if code is None else ["-c", code]
    command = [sys.executable, *start, "--device", "cpu", "--tiny", "--out", str(out), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.long
def test_every_part_of_the_check_runs_on_a_cpu(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(("tests", "trace", "bench"), "passed")
    assert "skipped" not in found["parts"]["tests"]["output"].splitlines()[-1]
    assert found["machine"]["packages"]["torch"]
    table = (tmp_path / "gpu-check.md").read_text()
    assert table in done.stdout
    assert "`gpu.train_vitt.images_per_s`" in table
    assert "`gpu.pixels_device/host`" in table
    assert json.loads((tmp_path / "gpu-trace.json").read_text())["operations"]
    assert (tmp_path / "gpu-trace.chrome.json.gz").stat().st_size > 1000


def test_a_part_that_fails_or_takes_too_long_leaves_the_others_and_the_status_is_1(tmp_path: Path) -> None:
    code = (
        "from benchmarks import gpu_check as check; make = check.Part\n"
        "check.parts = lambda *given: [make('broken', ('-c', 'raise SystemExit(3)'), 9), "
        "make('slow', ('-c', 'import time; print(\"RESULT begun 1 -\", flush=True); time.sleep(60)'), 1), "
        "make('good', ('-c', 'print(\"RESULT gpu.x 2.5 -\")'), 30)]\n"
        "check.main()"
    )
    done = check(tmp_path, code=code)
    assert done.returncode == 1
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"broken": "failed (3)", "slow": "stopped after 1 s", "good": "passed"}
    assert parts["good"]["figures"] == {"gpu.x": 2.5}
    assert parts["slow"]["figures"] == {"begun": 1.0}


def test_wheels_are_those_that_the_tests_here_run_with() -> None:
    wanted = pinned(LACKING, (ROOT / "constraints.txt").read_text())
    assert {"zarr==3.1.6", "crc32c==2.9.post0"} < set(wanted)
    assert all("==" in name for name in wanted)
    assert not any(name.startswith(("ray", "torch", "timm", "transformers", "pyarrow")) for name in wanted)


@pytest.mark.long
@pytest.mark.parametrize("script", ["bench_gpu", "gpu_check"])
def test_without_a_gpu_it_says_what_is_missing(script: str) -> None:
    code = f"import torch; torch.cuda.is_available = lambda: False; from benchmarks.{script} import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode
    assert "needs a CUDA device" in done.stderr


@pytest.mark.long
def test_the_wheels_install_without_network_and_the_parts_run_from_them(tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = [sys.executable, "tools/gpu_wheels.py", "--python", version, "--out", str(tmp_path / "wheels")]
    subprocess.run(made, cwd=ROOT, check=True, timeout=280)
    assert sum(wheel.stat().st_size for wheel in (tmp_path / "wheels").iterdir()) < 64 * 2**20
    done = check(tmp_path / "out", "--wheels", str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
