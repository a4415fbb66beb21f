"""One teacher, fully specified before anything large is built: what a feature set's identity says about it.

Cheap to make, small to send to a worker, equal when the tokens would be equal. The path and the display name are for
people; the identity has the sha256 of the weight file's bytes instead, so that a renamed file is the same teacher and a
changed one is another.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...storage.core.choices import COMPUTE_PRECISIONS
from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from ..encoders.preprocessing import Preprocessing

CLS_KINDS = (
    "class token",
    "concatenated class tokens",
    "attention pool",
    "projected attention pool",
    "mean of patch tokens",
    "normed mean of patch tokens",
    "features of its own head",
    "none",
)
RANDOM_WEIGHTS = "random weights, seed 0"


class PythonSource(NamedTuple):
    """The file of a teacher of the user's own; it travels with the spec, so that a worker on another machine needs no path."""

    path: Path
    """Where it lay when the teacher was resolved; for people."""
    code: bytes
    function: str
    """What makes the teacher, called with the weight file or None."""


@dataclass(frozen=True)
class TeacherSpec:
    """A frozen encoder with its weights, input and outputs; raises BadInput when the fields contradict each other."""

    name: str
    """For people, and for the folder of its features; not in the identity."""
    architecture: dict[str, Any]
    """Canonical, JSON-able."""
    weights_path: Path
    """A local safetensors file (of a FILE.py:FUNCTION teacher whatever it loads); not in the identity."""
    weights_sha256: str
    """Of that file's bytes, 64 hexadecimal digits; or RANDOM_WEIGHTS, for trials of speed and size."""
    preprocessing: Preprocessing
    """How an image becomes its input."""
    cls: str
    """What serves as class token, one of CLS_KINDS."""
    cls_dim: int | None
    """Channels of the class token; None exactly when `cls` is "none"."""
    patch_dim: int
    """Channels of a patch token."""
    grid: tuple[int, int]
    """Rows and columns of patch tokens at the native size."""
    precision: str = "fp32"
    """fp32, or bf16 for autocast."""
    source: PythonSource | None = None
    """Of a FILE.py:FUNCTION teacher; the identity has its sha256 in the architecture."""

    def __post_init__(self) -> None:
        if self.cls not in CLS_KINDS or (self.cls == "none") != (self.cls_dim is None):
            raise BadInput(f"teacher {self.name}: cls is {self.cls!r} with width {self.cls_dim}; kinds: {CLS_KINDS}")
        if self.precision not in COMPUTE_PRECISIONS:
            raise BadInput(f"teacher {self.name}: precision must be one of {COMPUTE_PRECISIONS}, got {self.precision!r}")

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the tokens, and nothing else, JSON-able."""
        return {
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing.identity(),
            "cls": self.cls,
            "cls_dim": self.cls_dim,
            "patch_dim": self.patch_dim,
            "grid": list(self.grid),
            "precision": self.precision,
        }

    @property
    def stride_px(self) -> int:
        """Pixels per patch token."""
        return size_hw(self.preprocessing.size_px)[0] // self.grid[0]

    def at_size(self, size_px: SizePx) -> "TeacherSpec":
        """Return the same teacher at another input size; raises BadInput unless the stride divides it and the teacher takes it."""
        size_px, stride_px = as_size(size_px, f"the input of teacher {self.name}"), self.stride_px
        one_size = as_size(self.architecture.get("one_size_px", size_px))
        if size_px != one_size:
            height, width = size_hw(one_size)
            raise BadInput(f"teacher {self.name} takes pixels of {height}×{width} px alone, got {size_text(size_px)}")
        height, width = size_hw(size_px)
        if min(height, width) < stride_px or height % stride_px or width % stride_px:
            nearest = as_size([max(1, round(side / stride_px)) * stride_px for side in (height, width)])
            raise BadInput(
                f"teacher {self.name} takes sizes that are multiples of {stride_px} px, got {size_text(size_px)}; "
                f"the nearest is {size_text(nearest)}"
            )
        grid = (height // stride_px, width // stride_px)
        return replace(self, preprocessing=replace(self.preprocessing, size_px=size_px), grid=grid)
