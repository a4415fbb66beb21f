"""Photometric distortion of views as numbers that are drawn once and stored: colour jitter, blur, solarisation.

A row of `MODES` says who sees them: `none`, `teacher_same` (teacher and student see the same distorted view, as in the paper),
`student_only` (the teacher sees the clean crop, the student learns to be invariant). The names are the paper's, the values ours, from
DINOv3's public recipe. A column is zero where nothing happens, so a row of zeros is an undistorted view.
`teachers.encoders.photometric` applies them; this file says what the numbers mean. Blur is measured in 1/256 of the view's side, so that
one view looks the same at every input size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..core import choices
from ..core.errors import BadInput


class PhotometricMode(NamedTuple):
    """Who sees the distortion of a set of views."""

    name: choices.PhotometricMode
    """As in the command line, recipes and identities."""
    seen_by_teacher: bool
    seen_by_student: bool

    @property
    def distorts(self) -> bool:
        """Whether views have distortions at all: only then are they drawn and part of the views' identity."""
        return self.seen_by_teacher or self.seen_by_student


_ROWS = (
    PhotometricMode("none", seen_by_teacher=False, seen_by_student=False),
    PhotometricMode("teacher_same", seen_by_teacher=True, seen_by_student=True),
    PhotometricMode("student_only", seen_by_teacher=False, seen_by_student=True),
)
MODES: dict[str, PhotometricMode] = {row.name: row for row in _ROWS}
COLUMNS = ("brightness", "contrast", "saturation", "hue", "blur", "solarize")
UNITS = {
    "brightness": "factor less 1",
    "contrast": "factor less 1",
    "saturation": "factor less 1",
    "hue": "turns",
    "blur": "sigma in 1/256 of the view's side",
    "solarize": "how many of the 256 levels are inverted, from the top",
}
STORED_COLUMNS = 8  # two are kept for later and zero
WORDS = 8


@dataclass(frozen=True)
class Distortion:
    """How strongly and how often views are distorted; every field is part of their identity."""

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # largest change of brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in 1/256 of the view's side
    blur_probability: float = 0.5
    solarize_threshold: int = 128  # of 256 levels; this one and those above are inverted
    solarize_probability: float = 0.2

    def __post_init__(self) -> None:
        if [*map(len, (self.jitter, self.blur_sigma))] != [4, 2]:
            raise BadInput(f"jitter is four numbers and blur_sigma two, got {self.jitter} and {self.blur_sigma}")
        if not all(0 <= value <= 1 for value in self.jitter) or self.jitter[3] > 0.5:
            raise BadInput(f"jitter is four numbers from 0 to 1, the last at most 0.5, got {self.jitter}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise BadInput(f"blur_sigma is two positive numbers, ascending, got {self.blur_sigma}")
        if not all(0 <= p <= 1 for p in (self.jitter_probability, self.blur_probability, self.solarize_probability)):
            raise BadInput("the probabilities of a distortion must lie in [0, 1]")
        if not 0 <= self.solarize_threshold <= 256:
            raise BadInput(f"solarize_threshold must lie in [0, 256], got {self.solarize_threshold}")

    def identity(self) -> dict[str, Any]:
        """Return the values as JSON-able data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_identity(cls, values: dict[str, Any]) -> "Distortion":
        """Return the distortion that `identity` describes."""
        pairs: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**pairs)

    def draw(self, uniforms: Sequence[float]) -> list[float]:
        """Return one view's columns from `WORDS` values in [0, 1): three decide which distortions apply, five how strongly."""
        jitter, blur, solarize, *amounts = uniforms
        row = [0.0] * STORED_COLUMNS
        if jitter < self.jitter_probability:
            row[:4] = [(2 * amount - 1) * largest for amount, largest in zip(amounts[:4], self.jitter, strict=True)]
        if blur < self.blur_probability:
            row[4] = self.blur_sigma[0] + (self.blur_sigma[1] - self.blur_sigma[0]) * amounts[4]
        if solarize < self.solarize_probability:
            row[5] = float(256 - self.solarize_threshold)
        return row
