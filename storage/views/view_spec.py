"""Views: which crop of which image a teacher saw, as explicit data that can be replayed.

A view is drawn once, from a counter-based generator (Philox) keyed by (seed, image id, k), so that any subset drawn in any order on any
machine gives the same values; it is then stored, and teachers and students read it. Only the generator's raw 64-bit stream is used, which
numpy keeps stable across versions. Resizing is an antialiased filter on uint8 (`renderers`), followed by the flip, and for letterboxed
views by the padding, which is why that is never mirrored. Axes: n views; crop = (top, left, height, width) in source pixels.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..core import choices
from ..core.errors import BadInput, unknown_name
from ..sources.decode import Pixels
from . import photometric
from .input_size import SizePx, as_size, size_hw, size_json, size_text
from .letterbox import IMAGENET_MEAN_RGB, Letterbox, cells_with_content
from .photometric import Distortion
from .renderers import INTERPOLATIONS as INTERPOLATIONS
from .renderers import PILLOW, Renderer

PHOTOMETRIC_PARAMETERS = photometric.STORED_COLUMNS
DIGEST_BYTES = 16
Box = tuple[int, int, int, int]  # top, left, height, width
_LARGEST_STORED_PX = 4096
_CROP_TRIES = 10
_LEFT_OUT = (("crop_ratio", 1.0),)  # of identities: what views had before it could be chosen
_FLIP_WORD = 4 * _CROP_TRIES
_RAW_WORDS = _FLIP_WORD + 1 + photometric.WORDS


class Input(NamedTuple):
    """The pixels that a model takes of a view: the side of the square or (height, width), and how it is resized."""

    size_px: SizePx
    interpolation: str = "bicubic"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (height, width, 3): of one view's pixels."""
        return (*size_hw(self.size_px), 3)

    @property
    def text(self) -> str:
        """Return size and interpolation in words, for messages."""
        return f"{size_text(self.size_px)} px {self.interpolation}"


def in_order(inputs: Iterable[Input]) -> list[Input]:
    """Return different inputs in one order, by height and width."""
    return sorted(set(inputs), key=lambda wanted: (size_hw(wanted.size_px), wanted.interpolation))


@dataclass(frozen=True)
class StoredPixels:
    """The rendered, undistorted views themselves, kept as raw uint8 beside their crops at one size, so that training needs no images."""

    size_px: SizePx
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)
        object.__setattr__(self, "size_px", as_size(self.size_px, "stored pixels"))
        if max(size_hw(self.size_px)) > _LARGEST_STORED_PX:
            raise BadInput(f"stored pixels have a side between 1 and {_LARGEST_STORED_PX:,} px, got {self.size_px!r}")

    def identity(self) -> dict[str, Any]:
        """Return size and interpolation as JSON-able data."""
        return {"size_px": size_json(self.size_px), "interpolation": self.interpolation}

    @property
    def input(self) -> Input:
        """The input that they serve."""
        return Input(self.size_px, self.interpolation)


@dataclass(frozen=True)
class ViewSpec:
    """How views are drawn; every field is part of their identity."""

    kind: choices.ViewKind = "random_resized_crop"
    views_per_image: int = 1
    seed: int = 0
    scale: tuple[float, float] = (0.32, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height, drawn log-uniformly
    flip_probability: float = 0.5
    crop_fraction: float = 1.0  # of the shorter side, for kind "center"
    photometric: str = "none"  # who sees the distortion: nobody, teacher_same, student_only
    distortion: Distortion = field(default_factory=Distortion)
    pixels: StoredPixels | None = None
    crop_ratio: float = 1.0  # width over height, for kind "center": that of the input, so that nothing is stretched
    pad_position: choices.PadPosition = "end"  # for kind "letterbox": right or bottom, or "center"
    pad_rgb: tuple[int, int, int] = IMAGENET_MEAN_RGB  # of 256 levels each, for kind "letterbox"

    def __post_init__(self) -> None:
        if self.kind not in VIEW_KINDS:
            raise unknown_name("kind of view", self.kind, VIEW_KINDS)
        if self.photometric not in photometric.MODES:
            raise unknown_name("photometric mode", self.photometric, photometric.MODES)
        kind = VIEW_KINDS[self.kind]
        if not kind.is_random and photometric.MODES[self.photometric].distorts:
            raise BadInput(f"{kind.called} are never distorted: photometric must be none, got {self.photometric}")
        if not kind.is_random and self.views_per_image != 1:
            raise BadInput(f"{kind.called} are all alike: views_per_image must be 1, got {self.views_per_image}")
        if kind.is_random and self.views_per_image != 1 and self._are_alike:
            raise BadInput(
                f"{kind.called} without flips or distortions are all alike: views_per_image must be 1, got {self.views_per_image}; "
                "give flip_probability or photometric as well"
            )
        if not 1 <= self.views_per_image <= 1024:
            raise BadInput(f"views_per_image must be between 1 and 1024, got {self.views_per_image}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise BadInput(f"scale must lie in (0, 1] and ratio be positive, both ascending, got {self.scale}, {self.ratio}")
        if not 0 <= self.flip_probability <= 1 or not 0 < self.crop_fraction <= 1:
            raise BadInput("flip_probability must lie in [0, 1] and crop_fraction in (0, 1]")
        if not 1 / 64 <= self.crop_ratio <= 64:
            raise BadInput(f"crop_ratio, width over height, must lie in [1/64, 64], got {self.crop_ratio}")
        Letterbox(self.pad_position, self.pad_rgb)  # raises BadInput

    @property
    def _are_alike(self) -> bool:
        """Whether each view of an image is the same, though it has a seed."""
        same_crop = VIEW_KINDS[self.kind].crop is _whole_image
        return same_crop and self.flip_probability in (0, 1) and not photometric.MODES[self.photometric].distorts

    @property
    def letterbox(self) -> Letterbox | None:
        """How a view is padded to an input's aspect ratio; None where it is stretched to it."""
        return Letterbox(self.pad_position, self.pad_rgb) if VIEW_KINDS[self.kind].is_padded else None

    def taught_cells(self, crop: NDArray[np.int32], size: SizePx, grid: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Return which tokens (n, H, W) of some views see any of the image at an input; None where all do: nothing is padded."""
        if self.letterbox is None:
            return None
        rows, columns = cells_with_content(self.letterbox.contents(crop[:, 2:], size), size, grid)
        return rows[:, :, None] & columns[:, None, :]

    def distortions(self, views: "Views", size: SizePx) -> NDArray[np.float32]:
        """Return what `teachers.encoders.photometric` takes for an input: a view's parameters, and of a letterboxed one where its image is.

        (n, 8), or (n, 12): distortions are of the image, and padding keeps its colour.
        """
        if self.letterbox is None:
            return views.photometric
        shares = self.letterbox.shares(views.crop[:, 2:], size).astype(np.float32)
        return np.concatenate([views.photometric, shares], axis=1)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the views: those of their kind."""
        return self._drawing() | ({} if self.pixels is None else {"pixels": self.pixels.identity()})

    def _drawing(self) -> dict[str, Any]:
        names = ("kind", "views_per_image", *VIEW_KINDS[self.kind].fields)
        values = {name: getattr(self, name) for name in names if (name, getattr(self, name)) not in _LEFT_OUT}
        drawn = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**drawn, "distortion": self.distortion.identity()} if photometric.MODES[self.photometric].distorts else drawn

    @classmethod
    def from_identity(cls, values: dict[str, Any]) -> "ViewSpec":
        """Return the spec that `identity` describes."""
        pairs: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if "distortion" in pairs:
            pairs["distortion"] = Distortion.from_identity(pairs["distortion"])
        if "pixels" in pairs:
            pairs["pixels"] = StoredPixels(**pairs["pixels"])
        return cls(**pairs)


class Views(NamedTuple):
    """n views: crop (n, 4) int32, flip (n,) bool, photometric (n, 8) fp32, digest (n, 16) uint8 of each crop's pixels."""

    crop: NDArray[np.int32]
    flip: NDArray[np.bool_]
    photometric: NDArray[np.float32]
    digest: NDArray[np.uint8]

    def part(self, rows: slice) -> "Views":
        """Return some neighbouring views, in the same memory."""
        return Views(self.crop[rows], self.flip[rows], self.photometric[rows], self.digest[rows])

    def chosen(self, rows: Sequence[int]) -> "Views":
        """Return some views, in memory of their own."""
        which = list(rows)
        return Views(self.crop[which], self.flip[which], self.photometric[which], self.digest[which])


def empty_views(count: int) -> Views:
    """Return memory for `count` views, all zero."""
    return Views(
        np.zeros((count, 4), np.int32),
        np.zeros(count, np.bool_),
        np.zeros((count, PHOTOMETRIC_PARAMETERS), np.float32),
        np.zeros((count, DIGEST_BYTES), np.uint8),
    )


def _uniforms(seed: int, image_id: str, k: int) -> list[float]:
    """Return `_RAW_WORDS` values in [0, 1) that depend on nothing but the arguments."""
    key = hashlib.sha256(f"{seed}\0{k}\0{image_id}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(_RAW_WORDS)
    return list((np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _center_crop(spec: ViewSpec, height: int, width: int, uniforms: Sequence[float]) -> Box:
    whole_h = min(height, width / spec.crop_ratio)
    crop_h = min(height, max(1, round(spec.crop_fraction * whole_h)))
    crop_w = min(width, max(1, round(spec.crop_fraction * whole_h * spec.crop_ratio)))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def _whole_image(spec: ViewSpec, height: int, width: int, uniforms: Sequence[float]) -> Box:
    return 0, 0, height, width


def _fallback_crop(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Return the largest centred crop whose shape lies in `ratio`, for images in which ten draws found no fitting box."""
    crop_h, crop_w = height, width
    if width / height < ratio[0]:
        crop_h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_w = min(width, max(1, round(height * ratio[1])))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def _random_crop(spec: ViewSpec, height: int, width: int, uniforms: Sequence[float]) -> Box:
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    for attempt in range(_CROP_TRIES):
        u_area, u_ratio, u_top, u_left = uniforms[4 * attempt : 4 * attempt + 4]
        area = height * width * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u_area)
        ratio = math.exp(low + (high - low) * u_ratio)
        crop_w, crop_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return int(u_top * (height - crop_h + 1)), int(u_left * (width - crop_w + 1)), crop_h, crop_w
    return _fallback_crop(height, width, spec.ratio)


class ViewKind(NamedTuple):
    """One way to choose a view's crop."""

    name: choices.ViewKind
    """As the command line, recipes and identities have it."""
    called: str
    """For messages, in the plural."""
    crop: Callable[[ViewSpec, int, int, Sequence[float]], Box]
    """A box inside an image of a height and a width; a random one from the first `4 × _CROP_TRIES` of a view's values in [0, 1)."""
    fields: tuple[str, ...]
    """What decides the views beside their kind and number: fields of `ViewSpec`, in the order of the identity."""
    is_padded: bool = False
    """Whether a view keeps its aspect ratio and is padded to an input, instead of being stretched to it."""

    @property
    def is_random(self) -> bool:
        """Whether views depend on a seed: only then can an image have several, mirrored and distorted ones."""
        return "seed" in self.fields


_ROWS = (
    ViewKind("random_resized_crop", "random views", _random_crop, ("seed", "scale", "ratio", "flip_probability", "photometric")),
    ViewKind("center", "centre views", _center_crop, ("crop_fraction", "crop_ratio")),
    ViewKind("whole", "views of the whole image", _whole_image, ("seed", "flip_probability", "photometric")),
    ViewKind(
        "letterbox",
        "letterboxed views",
        _whole_image,
        ("seed", "flip_probability", "photometric", "pad_position", "pad_rgb"),
        is_padded=True,
    ),
)
VIEW_KINDS: dict[str, ViewKind] = {row.name: row for row in _ROWS}


def draw(spec: ViewSpec, image_ids: Sequence[str], sizes_hw: NDArray[np.int32]) -> Views:
    """Draw K views for each of N images of the given (N, 2) sizes: row i·K + k is view k of image i; digests are zero."""
    views = empty_views(len(image_ids) * spec.views_per_image)
    crop, flip, kind, distorts = views.crop, views.flip, VIEW_KINDS[spec.kind], photometric.MODES[spec.photometric].distorts
    for i, image_id in enumerate(image_ids):
        height, width = int(sizes_hw[i, 0]), int(sizes_hw[i, 1])
        for k in range(spec.views_per_image):
            row = i * spec.views_per_image + k
            if not kind.is_random:
                crop[row] = kind.crop(spec, height, width, ())
                continue
            uniforms = _uniforms(spec.seed, image_id, k)
            crop[row] = kind.crop(spec, height, width, uniforms)
            flip[row] = uniforms[_FLIP_WORD] < spec.flip_probability
            if distorts:
                views.photometric[row] = spec.distortion.draw(uniforms[_FLIP_WORD + 1 :])
    return views


def cut(image: Pixels, crop: NDArray[np.int32]) -> Pixels:
    """Return the crop's pixels as a view of the image; raise `BadInput` when the box leaves the image."""
    top, left, height, width = crop.tolist()
    if min(top, left) < 0 or min(height, width) < 1 or top + height > image.shape[0] or left + width > image.shape[1]:
        raise BadInput(f"crop {(top, left, height, width)} leaves an image of {image.shape[0]} × {image.shape[1]} pixels")
    return image[top : top + height, left : left + width]


def pixel_digest(crop_pixels: Pixels) -> bytes:
    """Return 16 bytes that stand for the crop's shape and uint8 pixels before any resize (xxh3, 128 bits)."""
    hasher = xxhash.xxh3_128(np.array(crop_pixels.shape, np.int64).tobytes())
    hasher.update(np.ascontiguousarray(crop_pixels).data)
    return hasher.digest()


def resize(crop_pixels: Pixels, flip: bool, size_px: SizePx, interpolation: str = "bicubic", renderer: Renderer = PILLOW) -> Pixels:
    """Return the crop stretched to an input, (height, width, 3) uint8, antialiased, then mirrored when `flip`."""
    return fit(crop_pixels, flip, Input(size_px, interpolation), renderer=renderer)


def fit(
    crop_pixels: Pixels,
    flip: bool,
    wanted: Input,
    letterbox: Letterbox | None = None,
    renderer: Renderer = PILLOW,
    out: Pixels | None = None,
) -> Pixels:
    """Return the crop at an input, (height, width, 3) uint8: stretched to it, or inside of it with padding of the exact colour around.

    It is written into `out` where that is given. Padding stays where it is when the crop is mirrored: a model whose images lie at the top
    left never sees one at the top right.
    """
    view = np.empty(wanted.shape, np.uint8) if out is None else out
    content = view
    if letterbox is not None:
        top, left, height, width = letterbox.content((crop_pixels.shape[0], crop_pixels.shape[1]), wanted.size_px)
        view[:] = letterbox.rgb
        content = view[top : top + height, left : left + width]
    renderer.resize_into(content, crop_pixels, flip, wanted.interpolation)
    return view


def render(
    image: Pixels,
    crop: NDArray[np.int32],
    flip: bool,
    size_px: SizePx,
    interpolation: str = "bicubic",
    letterbox: Letterbox | None = None,
    renderer: Renderer = PILLOW,
) -> Pixels:
    """Return one view at a model's input: crop, antialiased resize, flip, padding where there is any → (height, width, 3) uint8."""
    return fit(cut(image, crop), flip, Input(size_px, interpolation), letterbox, renderer)
