"""The least version of each library whose older ones have a security hole that reaches us, checked before a command does anything.

A range in `pyproject.toml` binds pip alone: an environment that was made by hand, an image, another machine of a cluster can have less.
Reading the versions of what is installed costs milliseconds and imports nothing. Only holes that the data we read, or a peer that we talk
to, can reach stand here; docs/security.md has the same table with its sources, and a test compares the two and the ranges.
"""

import functools
import os
import re
from typing import NamedTuple

from ...storage.core.errors import BadInput

ACCEPTED = "EUPE_PIPELINE_ACCEPT_OLD"
"""Environment variable with the names of libraries whose old version is used all the same, such as `torch,ray`."""
_FINAL = 1  # behind a release's numbers: a final version comes after its pre-releases


class Hole(NamedTuple):
    """A hole that this package can be reached by: the first version without it, its name, what could reach it."""

    fixed_in: str
    advisory: str
    reach: str


HOLES: dict[str, Hole] = {
    "torch": Hole("2.10.0", "CVE-2026-24747, CVE-2025-32434", "a checkpoint (.pth) runs code although it is read as tensors alone"),
    "transformers": Hole("5.3.0", "CVE-2026-4372", "the config.json of a model's folder runs code from a hub"),
    "pillow": Hole("12.1.1", "CVE-2026-25990", "an image writes outside of its memory while it is decoded"),
    "pyarrow": Hole("14.0.1", "CVE-2023-47248", "a Parquet file runs code when it is opened"),
    "onnx": Hole("1.21.0", "CVE-2026-27489, CVE-2026-34446", "an ONNX graph reads any file of this machine as its weights"),
    "ray": Hole("2.54.0", "CVE-2026-27482", "a web page in a browser on this machine ends jobs of a Ray session"),
    "aiohttp": Hole("3.13.4", "CVE-2026-22815", "a web server or an object store fills the memory with headers"),
    "urllib3": Hole("2.7.0", "CVE-2026-44432, CVE-2026-21441", "an object store fills the memory with a compressed answer"),
}


def as_numbers(text: str) -> tuple[int, ...]:
    """Return a version's release as numbers that compare as versions do, a pre-release before its final one; (0,) for none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)(.*)", text.strip())
    if found is None:
        return (0,)
    release = [int(part) for part in found[1].split(".")]
    early = re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|dev)", found[2])
    return (*[*release, 0, 0, 0][:4], 0 if early else _FINAL)


def installed_holes() -> dict[str, str]:
    """Return {library: what is wrong with the version that is installed}, of all that are too old; one that is absent has no hole."""
    from importlib.metadata import PackageNotFoundError, version  # 30 ms, which `--help` need not wait for

    found = {}
    for name, hole in HOLES.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        if as_numbers(here) < as_numbers(hole.fixed_in):
            found[name] = f"{name} {here} has a known hole ({hole.advisory}): {hole.reach}; {hole.fixed_in} and later have not"
    return found


@functools.cache
def refuse_known_holes() -> None:
    """Raise `BadInput` if a library is installed in a version with a known hole that was not accepted by name; looks once a process."""
    accepted = {name.strip().lower() for name in os.environ.get(ACCEPTED, "").split(",")}
    holes = {name: text for name, text in installed_holes().items() if name not in accepted}
    if holes:
        wanted = " ".join(f"'{name}>={HOLES[name].fixed_in}'" for name in holes)
        raise BadInput(
            f"{'; '.join(holes.values())}. Run: pip install {wanted}. Who reads nothing but his own files, or has a version that somebody "
            f"else mended, sets {ACCEPTED}={','.join(holes)}"
        )
