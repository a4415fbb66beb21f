"""The views that an extraction draws: a recipe's, overridden by the command's options, with the origin of each value."""

import dataclasses
from typing import Any

from ...storage.core.choices import PadPosition, PhotometricMode, ViewKind
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.views.input_size import SizePx
from ...storage.views.view_spec import StoredPixels, ViewSpec
from ...student.model.view_config import ViewsConfig
from .load import load_recipe, read_document, stages_of
from .typed_tables import leaves

OPTIONS = {"kind": "--view-kind", "views_per_image": "--views", "seed": "--seed", "photometric": "--photometric",
           "pad_position": "--pad-position", "pad_rgb": "--pad-rgb"}  # fmt: skip
ValueOrigins = dict[str, dict[str, object]]


def chosen_views(
    recipe: str | None, stage: int | None = None, on_event: OnEvent = ignore_event, *, kind: ViewKind | None = None,
    views_per_image: int | None = None, seed: int | None = None, photometric: PhotometricMode | None = None,
    pixels_px: SizePx | None = None, pad_position: PadPosition | None = None, pad_rgb: tuple[int, int, int] | None = None,
) -> tuple[ViewSpec, ValueOrigins]:  # fmt: skip
    """Return the views of a recipe, overridden by the options (None: not given), and {key: {value, origin}}.

    Raises BadInput for a recipe whose stages have different views, unless one is picked.
    """
    stated, origins = (ViewsConfig(), {}) if recipe is None else views_of(recipe, stage)
    from_command = {"kind": kind, "views_per_image": views_per_image, "seed": seed, "photometric": photometric,
                    "pad_position": pad_position, "pad_rgb": pad_rgb}  # fmt: skip
    overrides: dict[str, Any] = {name: value for name, value in from_command.items() if value is not None}
    base = stated.spec() if "kind" not in overrides else dataclasses.replace(stated, kind=overrides["kind"]).spec()
    pixels = None if pixels_px is None else StoredPixels(pixels_px)
    spec = dataclasses.replace(base, **overrides, pixels=pixels)
    if (pad_position is not None or pad_rgb is not None) and spec.letterbox is None:
        raise BadInput(f"--pad-position and --pad-rgb are for letterboxed views, and these are {spec.kind}; give --view-kind letterbox")
    value_origins: ValueOrigins = {}
    for key, value in leaves(spec.identity()):
        before, origin = getattr(stated, key, None), origins.get(f"views.{key}", "default")
        if key in overrides:
            origin = OPTIONS[key] + (f", instead of the recipe's {before}" if before not in (None, value) else "")
            if before not in (None, value):
                on_event({"event": "note", "text": f"views.{key}: {value}  # {origin}"})
        value_origins[key] = {"value": value, "origin": "--pixels" if key.startswith("pixels.") else origin}
    return spec, value_origins


def views_of(recipe: str, stage: int | None) -> tuple[ViewsConfig, dict[str, str]]:
    """Return what a recipe states of its views, with the origins of all of its values; raises BadInput."""
    stages: list[int] = stages_of(read_document(recipe)[1]) if stage is None else []
    recipes = [load_recipe(recipe, stage=number) for number in (*stages,) or (stage,)]
    if any(other.recipe.views != recipes[0].recipe.views for other in recipes):
        raise BadInput(f"the stages of recipe {recipe} have different views; pick one with --stage, of {', '.join(map(str, stages))}")
    return recipes[0].recipe.views, recipes[0].origins
