"""Write the hashes of what `constraints.txt` pins: `requirements-ci.lock`, from which pip installs these very files and no others.

Pip itself says which file it would take for each pin and its sha256 (`pip install --dry-run --report`); nothing is installed. Torch is the
CPU build, which needs nothing that is not pinned. The lock is of Python 3.11 on Linux and x86-64; another Python or machine, an index
without that build of torch, and a file that was built since are refused by pip with both hashes, and take `make venv`.

    .venv/bin/python tools/ci_lock.py > requirements-ci.lock
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
HEADER = "# What `make venv-locked` installs, by sha256, for Python 3.11 on Linux, x86-64. Written by `make ci-lock` from constraints.txt."


def pinned(checkout: Path) -> list[str]:
    """Return the pins of constraints.txt."""
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def chosen_files(pins: Iterable[str]) -> list[dict[str, Any]]:
    """Return what pip would install for the pins: of each `metadata` and `download_info`; raises CalledProcessError with pip's words."""
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder) / "report.json", Path(folder) / "pins.txt"
        wanted.write_text("\n".join(pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        subprocess.run([*command, "--report", str(report), "-r", str(wanted)], check=True, stdout=sys.stderr)
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found


def pin_of(file: Mapping[str, Any]) -> str:
    """Return NAME==VERSION of a file, without the label of a local build."""
    name = file["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
    return f"{name}=={file['metadata']['version'].partition('+')[0]}"


def lock(files: Iterable[Mapping[str, Any]]) -> str:
    """Return the lines of a lock: each pin with the hashes of its files."""
    hashes: dict[str, set[str]] = {}
    for file in files:
        hashes.setdefault(pin_of(file), set()).add(file["download_info"]["archive_info"]["hashes"]["sha256"])
    entries = [" \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(found))]) for pin, found in sorted(hashes.items())]
    return "\n".join([HEADER, *entries]) + "\n"


def main() -> None:
    """Print the lock."""
    files = chosen_files(pinned(CHECKOUT))
    print(lock(files), end="")


if __name__ == "__main__":
    main()
