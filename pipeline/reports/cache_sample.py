"""Sample a feature set for its page: token norms, statistics per channel, dead channels, and a few images with their views and tokens.

Figures come from SAMPLE_VIEWS views spread evenly over what is committed, read in blocks, so that a set of any size costs the same. Norms
are of the teacher's own tokens; the channels' sampled mean and deviation are of the normalised ones, where 0 and 1 say that the frozen
statistics fit. A channel is dead when its frozen deviation is the floor, silent when it hardly moves in the sample.
Axes: n views, H W grid, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import CacheMismatch
from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...storage.features.statistics import STD_FLOOR, Moments
from ...storage.sources.decode import Pixels
from ..pictures.neighbours import example_images, images_with_tokens
from ..pictures.patch_tokens import SHOWN_PX
from ..pictures.pca import colours
from ..pictures.seen_views import as_teacher_saw, shown_size

SAMPLE_VIEWS = 256
BLOCK_VIEWS = 16
SHOWN_IMAGES = 5
SHOWN_VIEWS = 2
SILENT_STD = 0.02  # of a normalised channel, which should have 1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TokenFigures:
    """One kind of token in a sample: norms (N,), frozen deviation (D,), sampled mean and deviation of the normalised channels (D,)."""

    norms: Floats
    frozen_std: Floats
    mean: Floats
    std: Floats

    @property
    def dead(self) -> list[int]:
        """Channels whose frozen deviation is the floor: the teacher never moves them."""
        channels: list[int] = np.flatnonzero(self.frozen_std <= STD_FLOOR * (1 + 1e-6)).tolist()
        return channels

    @property
    def silent(self) -> list[int]:
        """Channels that are not dead and hardly move in the sample."""
        quiet: list[int] = np.flatnonzero(self.std < SILENT_STD).tolist()
        return sorted(set(quiet) - set(self.dead))


@dataclass(frozen=True)
class ShownView:
    """One recorded view: its crop as shares of the photo (top, left, height, width), and what the teacher saw and gave."""

    crop: tuple[float, float, float, float]
    flip: bool
    image: Pixels | None
    tokens: Pixels | None


@dataclass(frozen=True)
class ShownImage:
    """One image of the dataset with some of its views; `photo` is None when its source is gone."""

    id: str
    label: str
    height: int
    width: int
    photo: Pixels | None
    views: list[ShownView]


def sample_rows(reader: FeatureReader, count: int = SAMPLE_VIEWS) -> NDArray[np.int64]:
    """Return up to `count` rows that have tokens, evenly spread over the set, in order."""
    k = reader.views.views_per_image
    images = images_with_tokens(reader)
    positions = np.unique(np.linspace(0, len(images) * k - 1, min(count, len(images) * k)).astype(np.int64))
    return images[positions // k] * k + positions % k


def figures(reader: FeatureReader, rows: NDArray[np.int64], on_event: OnEvent) -> dict[str, TokenFigures]:
    """Return {"patch": …, "cls": …} of the rows ("cls" only where the teacher has one); {} without a row."""
    statistics, norms = reader.statistics, dict[str, list[Floats]]()
    moments: dict[str, Moments] = {}
    for start in range(0, len(rows), BLOCK_VIEWS):
        stored = reader.read(rows[start : start + BLOCK_VIEWS])
        patch_ND = reader.decode(stored).reshape(-1, reader.patch_dim)
        taught = reader.taught(rows[start : start + BLOCK_VIEWS], stored.position)
        patch_ND = patch_ND if taught is None else patch_ND[taught.reshape(-1)]
        normalised = {"patch": patch_ND} | ({} if stored.cls is None else {"cls": stored.cls.astype(np.float32)})
        for kind, tokens_ND in normalised.items():
            teacher_tokens_ND = statistics.denormalize_patch(tokens_ND) if kind == "patch" else statistics.denormalize_cls(tokens_ND)
            norms.setdefault(kind, []).append(np.linalg.norm(teacher_tokens_ND, axis=1))
            moments.setdefault(kind, Moments(tokens_ND.shape[1])).update(tokens_ND)
        on_event({"event": "progress", "stage": "sample", "done": start + len(stored.patch), "total": len(rows), "unit": "views"})
    frozen = {"patch": statistics.patch_std, "cls": statistics.cls_std}
    figures_of = {}
    for kind, measured in moments.items():
        mean, std = measured.finish(floor=0.0)
        frozen_std = frozen[kind]
        assert frozen_std is not None
        figures_of[kind] = TokenFigures(np.concatenate(norms[kind]), frozen_std, mean, std)
    return figures_of


def shown_images(reader: FeatureReader, notes: list[str]) -> list[ShownImage]:
    """Return a few images with their crops, what the teacher saw and its tokens as colours; a source that is gone becomes a note."""
    images = example_images(reader.views.dataset, images_with_tokens(reader), SHOWN_IMAGES).tolist()
    count = min(SHOWN_VIEWS, reader.views.views_per_image)
    rows = np.array([image * reader.views.views_per_image + k for image in images for k in range(count)], np.int64)
    if not images:
        return []
    tokens, views = coloured(reader, rows), reader.views.read(rows)
    images_shown = []
    for n, image in enumerate(images):
        row, image_rows = reader.views.dataset.row(image), slice(n * count, (n + 1) * count)
        height, width = reader.views.dataset.sizes_hw(image, image + 1)[0].tolist()
        crops = views.crop[image_rows]
        photo, seen = photo_and_views(reader, image, rows[image_rows], crops, notes)
        shown = [
            ShownView(shares(crop, height, width), bool(flip), view_pixels, token)
            for crop, flip, view_pixels, token in zip(crops, views.flip[image_rows], seen, tokens[image_rows], strict=True)
        ]
        label = reader.views.dataset.label_names[row.label] if row.label >= 0 else ""
        images_shown.append(ShownImage(row.id, label, height, width, photo, shown))
    return images_shown


def coloured(reader: FeatureReader, rows: NDArray[np.int64]) -> Sequence[Any]:
    """Return each row's patch tokens as colours, one basis for all; None for each when the set does not hold whole grids."""
    patch = reader.statistics.denormalize_patch(reader.decode(reader.read(rows)))
    return list(colours(patch)) if patch.ndim == 4 else [None] * len(rows)


def photo_and_views(
    reader: FeatureReader, image: int, rows: NDArray[np.int64], crops: NDArray[np.int32], notes: list[str]
) -> tuple[Pixels | None, Sequence[Pixels | None]]:
    """Return the image and its views as the teacher saw them, or None for each and one note when it is gone or decodes to other pixels."""
    try:
        seen = [
            as_teacher_saw(reader.views, row, shown_size(reader, crop_px(crop))) for row, crop in zip(rows.tolist(), crops, strict=True)
        ]
        return reader.views.dataset.read_image(image), seen
    except CacheMismatch as error:
        if not notes:
            notes.append(f"Views are shown without their photos: {error}")
        return None, [None] * len(rows)


def shares(crop: NDArray[np.int32], height: int, width: int) -> tuple[float, float, float, float]:
    """Return a crop (top, left, height, width) in pixels as shares of the photo."""
    top, left, crop_height, crop_width = crop.tolist()
    return top / height, left / width, crop_height / height, crop_width / width


def crop_px(crop: NDArray[np.int32]) -> int:
    """Return the side at which a crop is shown: its longer one, within reason."""
    return min(SHOWN_PX, int(max(crop[2], crop[3])))
