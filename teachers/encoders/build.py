"""Encoders by architecture: a name or a record of options becomes the full record, its facts, and an encoder with random weights.

Two families of our own (`architectures`: ViT, ConvNeXt) and timm's models by name (`timm_students`). What builds modules is imported only
when something is built, so that a recipe can be checked without torch's and timm's seconds.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...storage.core.errors import BadInput, unknown_name
from .architectures import ARCHITECTURES, CONVNEXT_STRIDE_PX, TIMM_STUDENT, Facts, Options, checked_convnext, checked_vit

if TYPE_CHECKING:
    from .encoder import Encoder


def canonical(architecture: str | Mapping[str, Any]) -> Options:
    """The full options of an architecture, JSON-able; raises BadInput on unknown names, options and bad values."""
    changes = {"name": architecture} if isinstance(architecture, str) else dict(architecture)
    name = changes.pop("name", None)
    if name is None:
        raise BadInput(f"an architecture needs a name, one of {sorted(ARCHITECTURES)}; got {dict(changes)!r}")
    if name == TIMM_STUDENT or str(name).startswith("timm:"):
        from .timm_students import timm_student  # builds modules, though on no memory

        return timm_student(name, changes)
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", str(name), (*ARCHITECTURES, "timm:NAME"))
    base = ARCHITECTURES[name]
    for key in changes:
        if key not in base:
            raise unknown_name(f"option of architecture {name!r}", key, set(base) - {"name"})
    full = {**base, **{key: list(v) if isinstance(v, tuple) else v for key, v in changes.items()}}
    return checked_vit(full) if full["name"] == "vit" else checked_convnext(full)


def facts(architecture: str | Mapping[str, Any]) -> Facts:
    """Width, stride and kind of class token of an architecture; raises as `canonical` does."""
    full = canonical(architecture)
    if full["name"] == TIMM_STUDENT:
        return Facts(full["width"], full["stride_px"], full["cls"])
    if full["name"] == "vit":
        return Facts(full["width"], full["patch_px"], "class token")
    return Facts(full["widths"][-1], CONVNEXT_STRIDE_PX, "normed mean of patch tokens")


def build_encoder(architecture: str | Mapping[str, Any]) -> "Encoder":
    """Return a randomly initialised encoder, in training mode; raise `BadInput` on unknown names, options and bad values."""
    from .encoder import built_from

    options = canonical(architecture)
    if options["name"] == TIMM_STUDENT:
        from .timm_students import build_timm_student

        return build_timm_student(options)
    return built_from(options, facts(options))


def try_sizes(architecture: str | Mapping[str, Any], sizes_px: Iterable[int]) -> None:
    """Raise BadInput unless the student takes each input size: by its stride, and one of timm by a forward that computes nothing."""
    import torch

    with torch.device("meta"):
        encoder = build_encoder(architecture)
        for size_px in sizes_px:
            grid = encoder.grid(size_px, size_px)
            if encoder.architecture["name"] == TIMM_STUDENT:
                from .timm_students import try_size

                try_size(encoder, size_px, grid)
