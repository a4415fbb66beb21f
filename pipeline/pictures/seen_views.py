"""Render a recorded view as its teacher saw it: crop, resize, flip, and the photometric distortion where the teacher sees one.

The same functions as in extraction, so that a picture shows what a token is of. torch is imported only for a distorted view.
"""

import numpy as np

from ...storage.features.features import FeatureReader
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import SizePx, as_size, size_hw
from ...storage.views.photometric import MODES
from ...storage.views.pixels import view_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input
from ...teachers.encoders.photometric import pixels_seen_by


def shown_size(reader: FeatureReader, longer_px: int) -> SizePx:
    """Return the size at which to show a view: the aspect ratio of the teacher's input, its longer side at `longer_px`."""
    height, width = size_hw(reader.input_px)
    return as_size([max(1, round(side * longer_px / max(height, width))) for side in (height, width)])


def as_teacher_saw(views: ViewSet, row: int, size_px: SizePx) -> Pixels:
    """Return one view (height, width, 3).

    Raises BadInput for a row outside or not committed, CacheMismatch for an image that is gone or decodes to other pixels than recorded.
    """
    rows = np.array([row])
    pixels = view_pixels(views, rows, Input(size_px))
    if not MODES[views.spec.photometric].seen_by_teacher:
        seen: Pixels = pixels[0]
        return seen
    import torch

    batch = torch.from_numpy(pixels), torch.from_numpy(views.spec.distortions(views.read(rows), size_px))
    seen = pixels_seen_by("teacher", views.spec.photometric, *batch)[0].numpy()
    return seen
