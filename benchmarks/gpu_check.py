"""Everything that a GPU has to show, in under ten minutes and without network: `make gpu-check` (wheels beforehand: `make gpu-wheels`).

Parts, each a process with a limit of its own: the equivalence tests on the device (`pytest -m gpu`), a trace of the steady training step
(the operations that take longest, peak memory, a Chrome trace), and the figures of bench_gpu.py. A part that fails or runs out of its time
does not stop the others; the status is 1 then. What was found goes to one JSON and one table, beside which the trace lies.

    python -m benchmarks.gpu_check [--device cuda] [--wheels .wheels] [--tiny] [--out docs/results]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
LIMIT_S = 590
_TAIL = 4000


@dataclass(frozen=True)
class Part:
    """One process of the check."""

    name: str
    command: tuple[str, ...]
    limit_s: int


@dataclass
class Outcome:
    """How a part ended."""

    status: str
    seconds: float
    output: str
    figures: dict[str, float] = field(default_factory=dict)


def parts(device: str, tiny: bool, work: Path) -> list[Part]:
    """Return what is run, in this order."""
    size = ("--tiny",) if tiny else ()
    tests = ("-m", "pytest", "-q", "-m", "gpu", "--device", device, "-W", "default", "-p", "no:cacheprovider", "tests/test_gpu.py")
    later = ("tests/jobs/training/test_reading_later.py",)
    return [
        Part("tests", (*tests, *(() if tiny else later)), 240),
        Part("trace", ("-m", "benchmarks.gpu_trace", "--device", device, *size, "--out", str(work)), 90),
        Part("bench", ("-m", "benchmarks.bench_gpu", "--device", device, *size, "--out", str(work / "bench-gpu.json")), 300),
    ]


def install(wheels: Path, site: Path) -> None:
    """Install the wheels and this package into a folder, from what lies here alone."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}  # its setuptools builds
    subprocess.run([*pip, "--no-build-isolation", str(ROOT)], check=True, env=environment)


def run(part: Part, environment: dict[str, str], left_s: float) -> Outcome:
    """Run one part within its limit and the time that is left."""
    started, limit = time.perf_counter(), min(part.limit_s, left_s)
    if limit < 1:
        return Outcome("no time was left", 0.0, "")
    try:
        done = subprocess.run(
            [sys.executable, *part.command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
        status, output = "passed" if done.returncode == 0 else f"failed ({done.returncode})", done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = f"stopped after {limit:.0f} s", _text(error.stdout) + _text(error.stderr)
    lines = [line.split() for line in output.splitlines() if line.startswith("RESULT ")]
    return Outcome(status, time.perf_counter() - started, output[-_TAIL:], {words[1]: float(words[2]) for words in lines})


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def machine(device: str) -> dict[str, Any]:
    """Return what this machine is, and the versions of what the project needs; None for a package that is not here."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [requirement.partition(">")[0].partition("=")[0] for requirement in needed]
    known: dict[str, Any] = {"device": "cpu", "memory_bytes": None}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        known = {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {**known, "python": platform.python_version(), "packages": {name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(found: dict[str, Any]) -> str:
    """Return the outcome as Markdown."""
    rows = [f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in found["parts"].items()]
    figures = {name: value for part in found["parts"].values() for name, value in part["figures"].items()}
    return "\n".join(
        [
            f"# What ran on {found['machine']['device']}", "",
            f"torch {found['machine']['packages']['torch']}, Python {found['machine']['python']}. `make gpu-check`, "
            f"{sum(part['seconds'] for part in found['parts'].values()):.0f} s.", "",
            "| part | outcome | s |", "|---|---|---|", *rows, "",
            "| figure | value |", "|---|---|", *(f"| `{name}` | {value:.4g} |" for name, value in figures.items()), "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--wheels", type=Path, help="Wheels to install first, into a folder of this run alone.")
    parser.add_argument("--tiny", action="store_true", help="Small shapes, to see that every part runs.")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu-check needs a CUDA device, and torch sees none; `--device cpu --tiny` shows that its parts run")
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if options.wheels is not None:
            install(options.wheels, Path(folder))
            environment["PYTHONPATH"] = folder
        outcomes = {}
        for part in parts(options.device, options.tiny, options.out):
            outcomes[part.name] = run(part, environment, LIMIT_S - (time.perf_counter() - started))
            print(f"{part.name}: {outcomes[part.name].status}, {outcomes[part.name].seconds:.0f} s", flush=True)
            if outcomes[part.name].status != "passed":
                print(outcomes[part.name].output)
    found = {"machine": machine(options.device), "parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    (options.out / "gpu-check.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu-check.md").write_text(table(found))
    print(table(found))
    sys.exit(any(outcome.status != "passed" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
