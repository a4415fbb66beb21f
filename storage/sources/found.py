"""What a walk over a source finds: images, broken ones, things that are no images, and what only a tar's end can tell.

Everything that is left out is one of two: `Skipped` is a sample that is lost (it counts for --max-bad-share), `LeftOut` is something that
never was one. Both are counted, and neither can pass in silence.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..core.choices import Container


@dataclass(frozen=True)
class SourceImage:
    """One image where it lies: bytes `offset … offset + length` of `path`, or row `offset` of a Parquet file."""

    image_id: str
    path: str  # relative to the source
    container: Container
    offset: int
    data: bytes
    label: str | None  # of a tar's image: in the `TarEnd` that follows


@dataclass(frozen=True)
class Skipped:
    """Something that looked like a sample and is not one: its name and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Something that is no image: its name, and the words under which its like are counted."""

    name: str
    what: str
    plain: bool = False  # a file of another kind, of which nobody wants to read each name


@dataclass(frozen=True)
class TarEnd:
    """What is known at a tar's end: labels by image id (they may follow all images), and images that are targets of another one."""

    labels: dict[str, str] = field(default_factory=dict)
    targets: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ClassNames:
    """The classes that a file names in their order, which all labels of the source must be of."""

    path: str
    names: tuple[str, ...]


Found = SourceImage | Skipped | LeftOut | TarEnd | ClassNames


def bad_name(name: str) -> str | None:
    """Why a file's or member's name cannot be an image id, None when it can."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a name with control characters or bytes that are not UTF-8"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "a name that leads out of the archive"
    return None


def shown(name: str) -> str:
    """A name as it may be printed and kept: with escapes where it has bytes that are no text."""
    return name if name.isprintable() else ascii(name)


def is_hidden(path: str) -> bool:
    """Whether a path is below what macOS and Unix hide: `._x` (AppleDouble), `.DS_Store`, `.git`, `__MACOSX`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def hidden(path: str) -> LeftOut:
    """What such a path is counted as."""
    return LeftOut(shown(path), "hidden files and folders", plain=True)


def of_another_kind(path: str) -> LeftOut:
    """A file that is no image: one of so many with its ending."""
    ending = PurePosixPath(path).suffix.lower()
    return LeftOut(shown(path), f"files ending {shown(ending)}" if ending else "files without an ending", plain=True)
