"""Compute patch tokens of photos by several encoders at one chosen resolution: the input of every picture of tokens.

Each encoder sees the same central part of each photo, resized as that encoder wants it; its own mean and std apply. The part is a square,
or has the aspect ratio of the inputs, which all encoders share: tokens that lie elsewhere in a photo could not be compared. The resolution
is one for all (`size_px`) with exceptions by name, because strides differ: a size that a stride does not divide is refused, never rounded.
Labels are file names, and for runs the shortest end of the path that tells them apart. torch is imported when a forward is asked for.
Axes: B photos, H W grid, D channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.sources.decode import Pixels, decode_image
from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from ...storage.views.pixels import center_square
from ...storage.views.view_spec import Input

SHOWN_PX = 448  # a photo's longer side beside its tokens
_BATCH = 4
_SAME_SHAPE = 1.05  # quotient of aspect ratios: sizes in strides of 14 and 16 px cannot have one exactly


@dataclass(frozen=True)
class Photo:
    """A photo's name and its pixels, HWC uint8."""

    label: str
    pixels: Pixels

    def square(self, size: Input) -> Pixels:
        """Return the central square at a size, (size_px, size_px, 3), or the central part of an input's aspect ratio."""
        return center_square(self.pixels, size)

    def shown(self, size_px: SizePx = 1) -> Pixels:
        """Return for people what an input of a size sees of the photo: never enlarged."""
        height, width = size_hw(size_px)
        across, down = self.pixels.shape[1] / width, self.pixels.shape[0] / height
        scale = min(across, down, SHOWN_PX / max(height, width))
        return self.square(Input(as_size([max(1, round(scale * height)), max(1, round(scale * width))])))


@dataclass(frozen=True)
class Encoders:
    """Encoders by name or run folder, each at `size_px` or at its own size in `sizes`; None: the encoder's native size."""

    names: Sequence[str]
    size_px: SizePx | None = None
    sizes: Mapping[str, SizePx] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise BadInput("a picture of tokens needs at least one encoder: --model NAME, or the folder of a run")
        if len(set(self.names)) < len(self.names):
            raise BadInput(f"a model is named twice: {', '.join(self.names)}")
        for option, by_name in (("--model-size", self.sizes), ("--weights", self.weights)):
            if stray := sorted(set(by_name) - set(self.names)):
                raise BadInput(f"{option} names {stray[0]!r}, which is not among the models: {', '.join(self.names)}")

    def labelled(self) -> dict[str, str]:
        """Return {label: name} in order."""
        return dict(zip(self.labels or short_labels(self.names), self.names, strict=True))


def short_labels(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell the names apart: `stage2`, or `a/stage2` beside `b/stage2`."""
    parts = [name.rstrip("/").split("/") if Path(name).is_dir() else [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)


def read_photos(paths: Sequence[Path]) -> list[Photo]:
    """Return the photos of image files, upright as a viewer shows them; raises BadInput for one that is absent, BadImage for no image."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise BadInput(f"{missing[0]} is not an image file; give paths of images")
    return [Photo(path.stem, decode_image(path.read_bytes(), where=str(path), orientation="upright")) for path in paths]


class SeenPhotos(NamedTuple):
    """Photos as people see them, HWC uint8, and {encoder's label: patch tokens (B, H, W, D)} of the same part of each."""

    images: list[Pixels]
    tokens: dict[str, NDArray[np.float32]]


def patch_tokens(encoders: Encoders, photos: Sequence[Photo], on_event: OnEvent) -> SeenPhotos:
    """Return photos with their tokens.

    Raises BadInput for an unknown encoder, missing weights, a size off its stride, and inputs of several aspect ratios.
    """
    import torch

    from ...teachers.registry.resolve import load_teacher, resolve_teacher
    from ...teachers.runtime.devices import choose_device

    labelled, tokens = encoders.labelled(), dict[str, NDArray[np.float32]]()
    files = {name: Path(file) for name, file in encoders.weights.items()}
    specs = {
        label: resolve_teacher(name, weights=files.get(name), size_px=encoders.sizes.get(name, encoders.size_px))
        for label, name in labelled.items()
    }
    shown_px = _shared_shape({label: spec.preprocessing.size_px for label, spec in specs.items()})
    for done, (label, spec) in enumerate(specs.items()):
        on_event({"event": "progress", "stage": "patch tokens", "done": done, "total": len(labelled), "unit": "models"})
        teacher = load_teacher(spec, choose_device("auto").value)
        parts = []
        for start in range(0, len(photos), _BATCH):
            pixels = [photo.square(spec.preprocessing.input) for photo in photos[start : start + _BATCH]]
            parts.append(teacher(torch.from_numpy(np.stack(pixels))).patch_BHWD.cpu().numpy())
        tokens[label] = np.concatenate(parts)
    on_event({"event": "progress", "stage": "patch tokens", "done": len(labelled), "total": len(labelled), "unit": "models"})
    return SeenPhotos([photo.shown(shown_px) for photo in photos], tokens)


def _shared_shape(sizes: Mapping[str, SizePx]) -> SizePx:
    """Return the input of the first encoder, whose aspect ratio the others share; raise `BadInput` where one does not."""
    (first, size), *others = sizes.items()
    height, width = size_hw(size)
    for label, other in others:
        quotient = (size_hw(other)[0] * width) / (size_hw(other)[1] * height)
        if max(quotient, 1 / quotient) > _SAME_SHAPE:
            raise BadInput(
                f"one picture shows one part of a photo, and {first} takes {size_text(size)} px, {label} {size_text(other)} px; give both "
                "inputs of one aspect ratio (--size, --model-size MODEL=HEIGHTxWIDTH), or draw them apart"
            )
    return size
