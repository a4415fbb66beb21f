"""Print exact pins for everything this project's dependencies pull in, as `constraints.txt` holds them.

The closure is walked through the metadata of what is installed, extras included, so that a tool which somebody added by hand to an
environment never becomes a pin. A local build tag (`2.13.0+cpu`) is dropped: the CPU and the CUDA build of one torch are the same pin.
Limits: it sees the platform it runs on only; a dependency with a marker for another platform stays without a pin there.

    .venv/bin/python tools/pins.py > constraints.txt
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

HEADER = "# Exact versions that CI runs. Written by `python tools/pins.py`; ranges are in pyproject.toml."


def canonical(name: str) -> str:
    """Return the name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(requirement: Requirement, extras: set[str]) -> bool:
    """Return whether the requirement's marker holds here, alone or for one of the extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Return {name: version} of the requirements and of all that they require; raises PackageNotFoundError for one not installed."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        key = (canonical(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found = distribution(requirement.name)
        pins[key[0]] = found.version.partition("+")[0]
        below = [Requirement(text) for text in found.requires or []]
        queue += [one for one in below if wanted(one, set(requirement.extras))]
    return pins


def main() -> None:
    """Print the pins of the pyproject.toml beside this folder, all those of its extras `test` and `docs` included."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["test"], *extras["docs"]]
    try:
        pins = closure([Requirement(text) for text in texts])
    except PackageNotFoundError as missing:
        sys.exit(f"{missing.name} is required but not installed; run `make venv docs` first")
    print(HEADER, *(f"{name}=={version}" for name, version in sorted(pins.items())), sep="\n")


if __name__ == "__main__":
    main()
