"""Render a recorded view as its teacher saw it: crop, resize, flip, and the photometric distortion where the teacher sees one.

The same functions as in extraction, so that a picture shows what a token is of. torch is imported only for a distorted view.
"""

import numpy as np

from ...storage.sources.decode import Pixels
from ...storage.views.input_size import SizePx
from ...storage.views.photometric import MODES
from ...storage.views.pixels import view_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input
from ...teachers.encoders.photometric import pixels_seen_by


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
