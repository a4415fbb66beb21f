"""Run mypy --strict over the folders as the package they are installed as, and over tests and tools.

Folder `X/` is `eupe_pipeline.X` only through setuptools' package-dir, which mypy does not read. So the folders are linked under
`build/house/eupe_pipeline/` and mypy is started there; the links are remade each time, they cannot go stale. Paths in the output are
those of the checkout.

    .venv/bin/python tools/house.py [more mypy options]
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
BESIDE = ("tests", "tools", "benchmarks")


def link(at: Path, target: Path) -> None:
    """Make `at` a symbolic link to `target`, whatever link was there; relative, so that a moved checkout still works."""
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.is_symlink():
        at.unlink()
    at.symlink_to(os.path.relpath(target, at.parent))


def lay_out(checkout: Path, house: Path) -> list[str]:
    """Link the rooms and what is checked beside them into `house`; returns what to check, relative to it."""
    for room in ROOMS:
        link(house / "eupe_pipeline" / room, checkout / room)
    beside = [name for name in BESIDE if any((checkout / name).rglob("*.py"))]
    for name in beside:
        link(house / name, checkout / name)
    return ["eupe_pipeline", *beside]


def run_mypy(checkout: Path, options: list[str]) -> int:
    """Print mypy's findings with the checkout's paths; returns its exit status."""
    house = checkout / "build" / "house"
    targets = lay_out(checkout, house)
    command = [sys.executable, "-m", "mypy", "--namespace-packages", "--explicit-package-bases"]
    command += ["--config-file", str(checkout / "pyproject.toml"), "--cache-dir", str(checkout / ".mypy_cache")]
    done = subprocess.run([*command, *options, *targets], cwd=house, capture_output=True, text=True, check=False)
    sys.stdout.write(re.sub(r"^eupe_pipeline/", "", done.stdout, flags=re.MULTILINE))
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(run_mypy(Path(__file__).resolve().parents[1], sys.argv[1:]))
