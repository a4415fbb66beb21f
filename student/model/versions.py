"""Which code computed something: versions, and a digest of this package's own source.

A checkout changes without its version doing so; the digest tells two states of the code apart. For people who compare runs: no check
reads it.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_ROOMS = Path(__file__).parents[2]


def versions() -> dict[str, str]:
    """Return the versions of torch and of this package."""
    return {"torch": torch.__version__, "eupe-pipeline": _own_version()}


@cache
def code_digest() -> str:
    """Return the first 12 hex digits of a sha256 over the source files of all rooms, by path."""
    total = hashlib.sha256()
    for room in ("storage", "teachers", "student", "jobs", "pipeline"):
        for path in sorted((_ROOMS / room).rglob("*.py")):
            total.update(f"{path.relative_to(_ROOMS).as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def _own_version() -> str:
    try:
        return version("eupe-pipeline")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
