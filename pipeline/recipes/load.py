"""Load recipes: TOML files that become one frozen, typed value, with the origin of each part.

A file either describes one stage (`eupe-stage1.toml`) or several in tables `[stage1]`, `[stage2]`, … (`demo.toml`). Beside the values, an
`[origins]` table says of each whether it is the paper's or ours and why; what it does not mention is "file NAME". `--set` overrides a
value and its origin, and what nobody sets is "default"; "paper" can only be said of what `paper.toml` holds. `cites` at the top of a file
says which table of the paper it is. A stage may start from another recipe (`extends = "eupe-stage2"`) and say only what
differs. A relative path in a file (`student.init_from`) starts, as one on the command line does, at the folder in which the command runs:
a file that comes with the package has no folder of the user's. The price of strictness: a recipe written for a newer version with one more
key is refused. It is the point: a misspelt option that trains silently costs days. Ranges are checked by the dataclasses themselves.
"""

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, unknown_name
from ...student.model.recipe import TrainRecipe
from .paper import FILE as PAPER_FILE
from .paper import check_claims
from .settings import parse_setting
from .typed_tables import build, leaves

FOLDER = Path(__file__).parent
Table = dict[str, Any]
USER_TABLES = ("student.options", "teacher.weights", "teacher.layers", "data.shares")  # mappings whose keys are the user's own


@dataclasses.dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with every value's origin: `paper`, `ours: reason`, `file NAME`, `--set` or `default`, by dotted key."""

    name: str
    recipe: TrainRecipe
    origins: dict[str, str]

    def rows(self) -> list[tuple[str, object, str]]:
        """Return (dotted key, value, origin) of every value, in the recipe's order."""
        return [(key, value, self.origins[key]) for key, value in leaves(self.recipe.to_dict())]

    def table(self) -> dict[str, dict[str, object]]:
        """Return {dotted key: {value, origin}} of every value."""
        return {key: {"value": value, "origin": origin} for key, value, origin in self.rows()}


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path != PAPER_FILE)


def cited_tables() -> dict[str, str]:
    """Return {recipe: the table or section of the paper that it is} of the package's recipes; "ours" for those of no table."""
    return {name: str(read_document(name)[1].get("cites", "ours")) for name in list_recipes()}


def show_recipe(name: str, *, stage: int | None = None, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return each value with its origin: of the recipe, or of each stage when the file holds several and none is picked."""
    stages = stages_of(read_document(name)[1]) if stage is None else []
    if not stages:
        return {"recipe": load_recipe(name, stage=stage, settings=settings).table()}
    return {f"stage{number}": load_recipe(name, stage=number, settings=settings).table() for number in stages}


def read_document(source: str) -> tuple[str, Table]:
    """Return (file name, parsed TOML) of a recipe by name or by path; raises BadInput for neither, and for broken TOML."""
    path = FOLDER / f"{source}.toml" if source in list_recipes() else Path(source).expanduser()
    if not path.is_file():
        if "/" in source or source.endswith(".toml"):
            raise BadInput(f"there is no recipe file {source}; `eupe-pipeline recipe ls` lists the recipes that come with the package")
        raise unknown_name("recipe", source, list_recipes())
    try:
        return path.name, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"recipe {path} is not valid TOML: {error}{of_a_key(error)}") from error


def of_a_key(error: Exception) -> str:
    """Return how names are written in a key, where that is what TOML stumbled over."""
    keys = ("after a key", "end of a table declaration", "for a key part")
    return '; a name with dots or plus signs is quoted: "dinov3-h+"' if any(words in str(error) for words in keys) else ""


def load_recipe(source: str, *, stage: int | None = None, settings: Sequence[str] = ()) -> ResolvedRecipe:
    """Return the recipe named or filed as `source`, with `settings` ("a.b=value") laid over it.

    `stage` picks the table of a file that holds several, and must agree with a file that holds one. Raises BadInput.
    """
    name, document = read_document(source)
    table, origins = extended(name, stage_table(name, document, stage))
    overrides = [parse_setting(text) for text in settings]
    for text, override in zip(settings, overrides, strict=True):
        clear_user_table(table, text.partition("=")[0].strip())
        lay_over(table, override)
    recipe = build(TrainRecipe, table, where=f"recipe {name}")
    set_keys = [key for override in overrides for key, _ in leaves(override)]
    plain = recipe.to_dict()
    origin_of = trace(plain, table, name, origins, set_keys)
    check_claims(name, recipe.stage, dict(leaves(plain)), origin_of)
    return ResolvedRecipe(name, recipe, origin_of)


def stages_of(document: Mapping[str, Any]) -> list[int]:
    """Return the stages that a file with one table a stage holds; empty for a file that is one stage."""
    return sorted(int(key[5:]) for key in document if re.fullmatch(r"stage\d+", key))


def stage_table(name: str, document: Table, stage: int | None) -> Table:
    """Return the table of one stage, `stage` filled in; raises BadInput when the file does not hold it."""
    stages = stages_of(document)
    if not stages:
        if stage is not None and "stage" not in document:
            raise BadInput(f"recipe {name} does not say its stage: write `stage = {stage}` at its top, or `[stage{stage}]` tables")
        if stage is not None and document["stage"] != stage:
            raise BadInput(f"recipe {name} is for stage {document['stage']}, asked for stage {stage}")
        return {key: value for key, value in document.items() if key != "cites"}
    if stage not in stages:
        raise BadInput(f"recipe {name} holds stages {', '.join(map(str, stages))}; asked for {stage or 'none'}: pass --stage")
    return {"stage": stage, **document[f"stage{stage}"]}


def extended(name: str, table: Table) -> tuple[Table, dict[str, str]]:
    """Return a stage's values over those of the recipe that it extends, and their origins; one level deep. Raises BadInput."""
    base_name = table.pop("extends", None)
    origins = check_origins(name, table.pop("origins", {}), table)
    if base_name is None:
        return table, origins
    file_name, document = read_document(str(base_name))
    base = stage_table(file_name, document, table.get("stage"))
    if "extends" in base:
        raise BadInput(f"recipe {name} extends {base_name}, which extends another one; extend that one")
    base_origins = check_origins(file_name, base.pop("origins", {}), base)
    base_origins = {key: nearest_table(key, base_origins) or f"file {file_name}" for key, _ in leaves(base)}
    before = dict(leaves(base))
    changed = {key for key, value in leaves(table) if key not in before or before[key] != value}
    lay_over(base, table)
    return base, {key: origin for key, origin in base_origins.items() if key not in changed} | origins


def lay_over(table: Table, override: Mapping[str, Any]) -> None:
    """Update the table in place with the override's values; nested tables are merged."""
    for key, value in override.items():
        if isinstance(value, Mapping) and isinstance(table.get(key), Mapping):
            table[key] = dict(table[key])
            lay_over(table[key], value)
        else:
            table[key] = value


def clear_user_table(table: Table, key: str) -> None:
    """Empty a table of the user's own keys where a setting gives all of it: `--set student.options={}` takes the file's options away.

    `student.options.depth=4` changes one option, `student.options={depth = 4}` means these options and no others.
    """
    name, _, inner = key.partition(".")
    if key in USER_TABLES and isinstance(table.get(name), Mapping):
        table[name] = {**table[name], inner: {}}


def nearest_table(key: str, among: Mapping[str, str]) -> str | None:
    """Return what `among` says of the key, or of the closest table around it."""
    while key:
        if key in among:
            return among[key]
        key = key.rpartition(".")[0]
    return None


def check_origins(
    name: str, origins_table: Mapping[str, Any], table: Mapping[str, Any], *, allowed: str = r"paper|ours: .+"
) -> dict[str, str]:
    """Return the [origins] table flat; raises BadInput for one of a value the file does not set, or of another form than `allowed`."""
    origins = dict(leaves(origins_table))
    set_here = {key for key, _ in leaves(table)}
    for key, origin in origins.items():
        if not isinstance(origin, str) or not re.fullmatch(allowed, origin):
            raise BadInput(f'recipe {name}: the origin of {key} is {origin!r}; write "paper" or "ours: the reason"')
        if not any(set_key == key or set_key.startswith(f"{key}.") for set_key in set_here):
            raise BadInput(f"recipe {name}: [origins] speaks of {key}, which the file does not set")
    return origins


def trace(resolved: Table, table: Table, name: str, origins: dict[str, str], set_keys: Iterable[str]) -> dict[str, str]:
    """Return {dotted key: origin} of every resolved value; what was set last wins."""
    by_setting = dict.fromkeys(set_keys, "--set")
    in_file = {key: f"file {name}" for key, _ in leaves(table)}
    origin_of = {}
    for key, _ in leaves(resolved):
        in_table = nearest_table(key, in_file)
        origin_of[key] = nearest_table(key, by_setting) or (in_table and (nearest_table(key, origins) or in_table)) or "default"
    return origin_of
