"""A recorded view as its teacher saw it: crop, resize, flip, and the photometric distortion where the teacher is to see one.

The same parts as in extraction, so that a picture shows what a token is about. torch is imported only for a distorted view.
"""

import numpy as np

from ...storage.sources.decode import Pixels
from ...storage.views.photometric import MODES
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import render


def as_teacher_saw(views: ViewSet, row: int, photo: Pixels, size_px: int) -> Pixels:
    """Return one view (size_px, size_px, 3) of its whole photo; raises BadInput for a row outside or not committed."""
    recorded = views.read(np.array([row]))
    pixels = render(photo, recorded.crop[0], bool(recorded.flip[0]), size_px)
    if not MODES[views.spec.photometric].seen_by_teacher:
        return pixels
    import torch

    from ...teachers.encoders.photometric import as_seen

    given = torch.from_numpy(np.array(pixels))[None], torch.from_numpy(recorded.photometric)
    seen: Pixels = as_seen("teacher", views.spec.photometric, *given)[0].numpy()
    return seen
