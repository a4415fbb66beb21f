"""What happens to an image's bytes before an encoder sees them, as plain data that can be hashed.

The order is fixed: resize to `size_px` (done where the crop is cut, with `interpolation`), channel order, divide by
`pixel_scale`, subtract `mean`, divide by `std`. `mean` and `std` are in the encoder's own channel order and in units after
the division. Two encoders that differ here see different images, so the whole record is part of a feature set's identity.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...storage.core.choices import CONSTANTS, INTERPOLATIONS
from ...storage.core.errors import BadInput, unknown_name
from ...storage.views.input_size import SizePx, as_size, size_json
from ...storage.views.view_spec import Input

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)
CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class Preprocessing:
    """Resize and normalisation of one encoder; raises BadInput on a value that cannot be."""

    size_px: SizePx
    """Side of the square input in pixels, or (height, width)."""
    interpolation: str = "bicubic"
    """How the crop is resized: bicubic, bilinear or nearest, antialiased where the method allows."""
    mean: Triple = IMAGENET_MEAN
    """Subtracted from each channel after the division by `pixel_scale`."""
    std: Triple = IMAGENET_STD
    """Divides each channel."""
    pixel_scale: float = 255.0
    """255 maps bytes to 0..1, 1 leaves them at 0..255."""
    channel_order: str = "rgb"
    """rgb or bgr: the order in which the encoder was trained."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_px", as_size(self.size_px, "an encoder's input"))
        if self.interpolation not in INTERPOLATIONS or self.channel_order not in CHANNEL_ORDERS:
            raise BadInput(
                f"interpolation must be one of {INTERPOLATIONS} and channel_order one of {CHANNEL_ORDERS}, "
                f"got {self.interpolation!r} and {self.channel_order!r}"
            )
        if self.pixel_scale <= 0 or {len(values) for values in (self.mean, self.std)} != {3} or min(self.std) <= 0:
            raise BadInput("pixel_scale and std must be positive, mean and std must have three values each")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing of an `identity`; raise BadInput for missing, unknown or unusable fields."""
        try:
            plain = {**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}
            return cls(**plain)
        except (KeyError, TypeError) as error:
            raise BadInput(f"this is not a preprocessing record: {dict(values)!r} ({error})") from error

    @property
    def input(self) -> Input:
        """The pixels that it takes of a view."""
        return Input(self.size_px, self.interpolation)

    def with_constants(self, constants: str) -> "Preprocessing":
        """Return this preprocessing with its own mean and std ("own"), or ImageNet's ("imagenet": the paper's for every teacher).

        Raise BadInput on other names, and where ImageNet's constants have no meaning: inputs in bytes or in BGR.
        """
        if constants not in CONSTANTS:
            raise unknown_name("choice of constants", constants, CONSTANTS)
        if constants == "own":
            return self
        if self.pixel_scale != 255.0 or self.channel_order != "rgb":
            raise BadInput(
                f"ImageNet's mean and std are for RGB in 0..1; this teacher takes {self.channel_order} in 0..{255 / self.pixel_scale:g}"
            )
        return replace(self, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def identity(self) -> dict[str, Any]:
        """Return every field as JSON-able data."""
        return {**asdict(self), "size_px": size_json(self.size_px), "mean": list(self.mean), "std": list(self.std)}

    def apply(self, pixels_BHWC: Tensor) -> Tensor:
        """Return uint8 RGB (B, H, W, 3) → float32 (B, 3, H, W), normalised, on the same device; channels-last in memory."""
        if pixels_BHWC.dtype != torch.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[-1] != 3:
            raise BadInput(
                f"expected uint8 pixels (B, H, W, 3), got {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}; floats would be normalised twice"
            )
        x_BHWC = pixels_BHWC.float()
        if self.channel_order == "bgr":
            x_BHWC = x_BHWC.flip(-1)
        constants = _on_cuda if x_BHWC.is_cuda else torch.tensor
        mean, std = (constants(values, device=x_BHWC.device) for values in (self.mean, self.std))
        return x_BHWC.div_(self.pixel_scale).sub_(mean).div_(std).permute(0, 3, 1, 2)


@cache
def _on_cuda(values: Triple, device: torch.device) -> Tensor:
    """Return constants on a CUDA device, cached: sending three numbers makes the host wait for all queued work."""
    return torch.tensor(values, device=device)
