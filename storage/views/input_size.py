"""The size of a model's input: one whole number for a square, as ever, and (height, width) for any other.

A square is always the number, never a pair of equal ones, so that a size has one form in identities, names and comparisons: `as_size` is
where the other forms end. In JSON and TOML a pair is a list, on the command line `HEIGHTxWIDTH`.
"""

from ..core.errors import BadInput

SizePx = int | tuple[int, int]
"""The side of a square in pixels, or (height, width) of an input that is none."""
LARGEST_SIDE_PX = 1 << 14


def as_size(value: object, what: str = "an input") -> SizePx:
    """Return a size from what a file or a caller gives: a number, or a pair of height and width; raise `BadInput` naming `what`."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= LARGEST_SIDE_PX for side in sides):
        raise BadInput(
            f"the size of {what} is {value!r}; expected the side of a square in pixels such as 256, or height and width such as "
            f"[384, 512], each 1 to {LARGEST_SIDE_PX:,}"
        )
    height, width = sides
    return height if height == width else (height, width)


def parse_size(text: str) -> SizePx:
    """Return the size that is written `256` or `384x512` (height × width); raise `BadInput` for anything else."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise BadInput(f"a size is a side in pixels such as 256, or HEIGHTxWIDTH such as 384x512, got {text!r}")
    return as_size([int(part) for part in parts] if len(parts) == 2 else int(parts[0]))


def size_hw(size: SizePx) -> tuple[int, int]:
    """Return (height, width)."""
    return (size, size) if isinstance(size, int) else size


def square_side(size: SizePx, what: str, instead: str = "choose a size of one number") -> int:
    """Return the side of a square; raise `BadInput` saying that `what` takes squares alone, and what to do `instead`."""
    if not isinstance(size, int):
        raise BadInput(f"{what} takes square inputs alone, got {size_text(size)} px; {instead}")
    return size


def area_px(size: SizePx) -> int:
    """Return the number of pixels."""
    height, width = size_hw(size)
    return height * width


def size_text(size: SizePx) -> str:
    """Return a size as the command line takes it."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def size_json(size: SizePx) -> int | list[int]:
    """Return a size as identities and records have it."""
    return size if isinstance(size, int) else list(size)
