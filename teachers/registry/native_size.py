"""What is known to differ when a teacher runs at another input size than its own.

Meta's code for PE resamples the position embedding bilinearly and counts the rotary positions of the new grid; timm resamples with an
antialiased bicubic filter and scales the positions to the grid of the training. At the native size both are the same; off it tokens differ
by 0.1 to 0.2. Other teachers' official code and timm's agree as far as is known, so nothing is said of them.
"""

import re

from ...storage.views.input_size import size_text
from .spec import TeacherSpec


def size_warning(spec: TeacherSpec) -> str | None:
    """Return a sentence on a PE teacher off its native input size; None for any other."""
    native = re.match(r"vit_pe_\w+?_patch\d+_(?:\w+_)?(\d+)(?:\.|$)", str(spec.architecture.get("model", "")))
    if native is None or spec.preprocessing.size_px == int(native[1]):
        return None
    return (
        f"{spec.name} at {size_text(spec.preprocessing.size_px)} px is off PE's native {native[1]} px: timm resamples its positions "
        f"otherwise than Meta's code, and tokens differ by 0.1 to 0.2; --teacher-size {spec.name}={native[1]} gives Meta's"
    )
