"""Resolve all dependencies, those of the tests included, for each Python that the package names; only wheels count (`make pythons`).

CI runs one Python. What another one would install is asked of the resolver: a dependency without a wheel for it is found here, not by its
user. Limits: nothing is downloaded or run, and torch's CUDA wheels stand for its CPU wheels, which have the same Pythons.

    .venv/bin/python tools/pythons.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CHECKOUT = Path(__file__).parents[1]


def resolved(python: str) -> dict[str, str]:
    """Return {name: version} of what a Python would install; raises SystemExit with the resolver's reason."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv resolves for other Pythons and is not installed; run `make venv`")
    command = [uv, "pip", "compile", "--quiet", "--extra", "test", "--only-binary", ":all:", "--python-version", python]
    done = subprocess.run([*command, str(CHECKOUT / "pyproject.toml")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nothing can be installed on Python {python}:\n{done.stderr}")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


def main() -> None:
    """Print one line a Python."""
    for python in PYTHONS:
        found = resolved(python)
        print(f"Python {python}: {len(found)} packages, torch {found['torch']}, ray {found['ray']}, numpy {found['numpy']}", flush=True)


if __name__ == "__main__":
    main()
