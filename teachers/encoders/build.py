"""Encoders by architecture: a name or a record of options becomes the full record, its facts, and an encoder with random weights.

`FAMILIES` has a row for each family: two of our own (`architectures`: ViT, ConvNeXt), timm's models by name (`timm_students`), and what an
installed package adds by entry points of the group `eupe_pipeline.students` (`storage.core.plugins`), whose object is a `StudentFamily`.
What builds modules is imported only when something is built, so that a recipe can be checked without torch's and timm's seconds.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.plugins import Table
from ...storage.views.input_size import SizePx, size_hw
from .architectures import ARCHITECTURES, CONVNEXT_STRIDE_PX, TIMM_STUDENT, Facts, Options, checked_convnext, checked_vit

if TYPE_CHECKING:
    from .encoder import Encoder


def _any_size(encoder: "Encoder", size_px: SizePx, grid: tuple[int, int]) -> None:
    """Accept every input size that the stride divides."""


class StudentFamily(NamedTuple):
    """A row of the table: everything that depends on the family."""

    read: Callable[[str, Mapping[str, Any]], Options]
    """A name and the options to change → all options, checked, JSON-able, with the family as `name`; raises `BadInput`."""
    facts: Callable[[Options], Facts]
    """All options → width, stride and kind of class token."""
    build: Callable[[Options], "Encoder"]
    """All options → an encoder with random weights, in training mode."""
    try_size: Callable[["Encoder", SizePx, tuple[int, int]], None] = _any_size
    """An encoder on the meta device, an input's size, the grid (H, W) that the stride makes of it; raises `BadInput`."""
    prefix: str = ""
    """Names of the family begin with it; without one they stand in ARCHITECTURES, or are the family's own."""


def options_over(defaults: Options, check: Callable[[Options], Options], name: str, changes: Mapping[str, Any]) -> Options:
    """Return a family's options with the changes put in, checked; raise `BadInput` for an unknown option. Partial, it is a `read`."""
    for key in changes:
        if key not in defaults:
            raise unknown_name(f"option of architecture {name!r}", key, set(defaults) - {"name"})
    return check({**defaults, **{key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}})


def _read_ours(check: Callable[[Options], Options], name: str, changes: Mapping[str, Any]) -> Options:
    return options_over(ARCHITECTURES[name], check, name, changes)


def _read_timm(name: str, changes: Mapping[str, Any]) -> Options:
    from .timm_students import timm_student  # builds modules, though on no memory

    return timm_student(name, changes)


def _build_vit(options: Options) -> "Encoder":
    from .encoder import build_vit

    return build_vit(options, facts(options))


def _build_convnext(options: Options) -> "Encoder":
    from .encoder import build_convnext

    return build_convnext(options, facts(options))


def _build_timm(options: Options) -> "Encoder":
    from .timm_students import build_timm_student

    return build_timm_student(options)


def _try_timm(encoder: "Encoder", size_px: SizePx, grid: tuple[int, int]) -> None:
    from .timm_students import try_size

    try_size(encoder, size_px, grid)


ROWS: dict[str, StudentFamily] = {
    "vit": StudentFamily(
        partial(_read_ours, checked_vit), lambda full: Facts(full["width"], full["patch_px"], "class token"), _build_vit
    ),
    "convnext": StudentFamily(
        partial(_read_ours, checked_convnext), lambda full: Facts(full["widths"][-1], CONVNEXT_STRIDE_PX, "normed mean of patch tokens"),
        _build_convnext,
    ),
    TIMM_STUDENT: StudentFamily(
        _read_timm, lambda full: Facts(full["width"], full["stride_px"], full["cls"]), _build_timm, _try_timm, "timm:"
    ),
}  # fmt: skip
FAMILIES = Table("student family", "eupe_pipeline.students", StudentFamily, ROWS, "ours (teachers/encoders/build.py)")
"""Ours and the plug-ins', by the `name` in an architecture's record."""


def canonical(architecture: str | Mapping[str, Any]) -> Options:
    """Return the full options of an architecture, JSON-able; raise BadInput on unknown names, options and bad values."""
    changes = {"name": architecture} if isinstance(architecture, str) else dict(architecture)
    name = changes.pop("name", None)
    if name is None:
        raise BadInput(f"an architecture needs a name, one of {sorted(ARCHITECTURES)}; got {dict(changes)!r}")
    family = _family_of(str(name))
    if family is None:
        raise unknown_name("architecture", str(name), (*ARCHITECTURES, *FAMILIES.names_of_plugins(), "timm:NAME"))
    full = family.read(str(name), changes)
    if FAMILIES[str(full.get("name"))] is not family:
        raise BadInput(f"the student family of {name!r} gives a record of the name {full.get('name')!r}, which is another family's")
    return full


def _family_of(name: str) -> StudentFamily | None:
    if name in ARCHITECTURES:
        return FAMILIES[ARCHITECTURES[name]["name"]]
    if name in FAMILIES:
        return FAMILIES[name]
    return next((row for row in ROWS.values() if row.prefix and name.startswith(row.prefix)), None)


def facts(architecture: str | Mapping[str, Any]) -> Facts:
    """Return width, stride and kind of class token of an architecture; raise as `canonical` does."""
    full = canonical(architecture)
    return FAMILIES[full["name"]].facts(full)


def cls_width(architecture: str | Mapping[str, Any]) -> int:
    """Return the channels of an architecture's class token: its record states them where they are not those of its patch tokens."""
    full = canonical(architecture)
    return int(full.get("cls_width", FAMILIES[full["name"]].facts(full).width))


def build_encoder(architecture: str | Mapping[str, Any]) -> "Encoder":
    """Return a randomly initialised encoder, in training mode; raise `BadInput` on unknown names, options and bad values."""
    full = canonical(architecture)
    return FAMILIES[full["name"]].build(full)


def try_sizes(architecture: str | Mapping[str, Any], sizes_px: Iterable[SizePx]) -> None:
    """Raise BadInput unless the student takes each input size: by its stride, and one of timm by a forward that computes nothing."""
    import torch

    with torch.device("meta"):
        encoder = build_encoder(architecture)
        for size_px in sizes_px:
            FAMILIES[encoder.architecture["name"]].try_size(encoder, size_px, encoder.grid(*size_hw(size_px)))
