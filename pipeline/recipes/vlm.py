"""Recipes of `evaluate vlm`: TOML files with the origin of each value, as those of trainings, read into another dataclass.

An origin is `paper`, `LLaVA-1.5`, or `ours: reason`; a reason may follow `LLaVA-1.5` as well. `--set` overlays a value.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, unknown_name
from ...student.language.recipe import VlmRecipe
from .load import FOLDER, check_origins, lay_over, trace
from .paper import check_claims
from .settings import parse_setting
from .typed_tables import build, leaves

EVALUATIONS_FOLDER = FOLDER / "evaluations"
DEFAULT = "llava-1.5"
ORIGINS = r"paper|LLaVA-1\.5(: .+)?|ours: .+"


@dataclass(frozen=True)
class ResolvedVlm:
    """A recipe with every value's origin, by dotted key."""

    name: str
    recipe: VlmRecipe
    origins: dict[str, str]


def load_vlm_recipe(source: str = DEFAULT, settings: Sequence[str] = ()) -> ResolvedVlm:
    """Return the recipe named or filed as `source`, with `settings` ("a.b=value") laid over it; raises BadInput."""
    named = EVALUATIONS_FOLDER / f"{source}.toml"
    path = named if named.is_file() else Path(source).expanduser()
    if not path.is_file():
        raise unknown_name("recipe of a language model", source, [file.stem for file in EVALUATIONS_FOLDER.glob("*.toml")])
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"recipe {path} is not valid TOML: {error}") from error
    origins = check_origins(path.name, table.pop("origins", {}), table, allowed=ORIGINS)
    overrides = [parse_setting(text, VlmRecipe) for text in settings]
    for override in overrides:
        lay_over(table, override)
    recipe = build(VlmRecipe, table, where=f"recipe {path.name}")
    set_keys = [key for override in overrides for key, _ in leaves(override)]
    origin_of = trace(recipe.to_dict(), table, path.name, origins, set_keys)
    check_claims(path.name, "vlm", dict(leaves(recipe.to_dict())), origin_of)
    return ResolvedVlm(path.stem, recipe, origin_of)
