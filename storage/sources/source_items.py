"""The items that a walk over a source yields: images, lost samples, other files, and what is known only at the end of a tar.

What is left out is one of two: `Skipped` is a sample that is lost (it counts for --max-bad-share), `LeftOut` is something that never was a
sample. Both are counted and reported.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..core.choices import Container


@dataclass(frozen=True)
class SourceImage:
    """One image and its location: bytes `offset … offset + length` of `path`, or row `offset` of a Parquet file."""

    image_id: str
    path: str  # relative to the source
    container: Container
    offset: int
    data: bytes
    label: str | None  # of a tar's image: in the `TarEnd` that follows


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used: its name and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Something that is no sample: its name, and the text under which its kind is counted."""

    name: str
    what: str
    plain: bool = False  # too common for its name to be reported (files of other kinds)


@dataclass(frozen=True)
class TarEnd:
    """What is known at the end of a tar: labels by image id (they may follow all images), and images that are targets of others."""

    labels: dict[str, str] = field(default_factory=dict)
    targets: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ClassNames:
    """The class names in a file, in their order; all labels of the source must be among them."""

    path: str
    names: tuple[str, ...]


SourceItem = SourceImage | Skipped | LeftOut | TarEnd | ClassNames


def bad_name(name: str) -> str | None:
    """Return why a file's or member's name cannot be an image id, None when it can."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a name with control characters or bytes that are not UTF-8"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "a name that leads out of the archive"
    return None


def printable(name: str) -> str:
    """Return a name that can be printed and stored as text: with escapes where it is not printable."""
    return name if name.isprintable() else ascii(name)


def is_hidden(path: str) -> bool:
    """Return whether a path is hidden: below `._x` (AppleDouble), `.DS_Store`, `.git` or `__MACOSX`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def hidden_file(path: str) -> LeftOut:
    """Return what a hidden path is counted as."""
    return LeftOut(printable(path), "hidden files and folders", plain=True)


def other_file(path: str) -> LeftOut:
    """Return what a file that is no image is counted as: its ending."""
    ending = PurePosixPath(path).suffix.lower()
    return LeftOut(printable(path), f"files ending {printable(ending)}" if ending else "files without an ending", plain=True)
