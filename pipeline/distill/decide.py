"""Decide how tokens are cached and by what recipes is trained: by rule, as recorded in the folder, or by the recipe that was given."""

from collections.abc import Mapping
from typing import Any

from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from .folder import DistillFolder
from .options import DistillOptions
from .recipes import DistillRecipes, read_recipes


def decided_recipes(
    options: DistillOptions, folder: DistillFolder, store: FeatureStore, photos: ImageDataset, stages: tuple[int, ...], on_event: OnEvent
) -> DistillRecipes:
    """Return the recipes of a distillation; those that rules decide are written into the folder first, unless they stand there."""
    names = [*options.students, *(["proxy"] if 1 in stages else [])]
    if options.recipe is not None:
        return read_recipes(dict.fromkeys(names, options.recipe), stages, options.teachers)
    raise NotImplementedError


def decisions_of(recipes: DistillRecipes, stages: tuple[int, ...]) -> dict[str, Any]:
    """Return each decision with its origin, by training and dotted key, of what is not a default."""
    shown: dict[str, Any] = {}
    resolved: Mapping[str, Any] = {
        **({} if recipes.proxy is None else {"proxy, stage 1": recipes.proxy}),
        **{f"{student}, stage {stage}": recipe for student, by_stage in recipes.students.items() for stage, recipe in by_stage.items()},
    }
    for name, recipe in resolved.items():
        shown[name] = {key: {"value": value, "origin": origin} for key, value, origin in recipe.rows() if origin != "default"}
    return shown
