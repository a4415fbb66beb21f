"""The recipes that a distillation runs by: read from files, whether the rules wrote them or the user gave one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...storage.core.choices import TargetSource
from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx
from ...storage.views.view_spec import ViewSpec
from ..recipes.extraction import ExtractConfig
from ..recipes.load import ResolvedRecipe, load_recipe, read_document, stages_of
from ..recipes.training import layer_settings
from ..recipes.typed_tables import build


@dataclass(frozen=True)
class DistillRecipes:
    """How tokens are cached, and one recipe a training."""

    extract: ExtractConfig
    views: ViewSpec
    proxy: ResolvedRecipe | None
    """Stage 1; None where no proxy is trained."""
    students: Mapping[str, Mapping[int, ResolvedRecipe]]
    """By architecture and stage."""
    files: Mapping[str, str]
    """By architecture, and of "proxy": the file or the recipe's name."""

    def sized(self, requests: Sequence[TeacherRequest], size_px: SizePx) -> tuple[TeacherRequest, ...]:
        """Return models at one of the input sizes that are drawn; raises BadInput for a size that one does not take."""
        return tuple(
            replace(request, size_px=size_px, spec=None if request.spec is None else request.spec.at_size(size_px)) for request in requests
        )

    def sized_options(self, store: str, data: str, requests: Sequence[TeacherRequest], keys: Sequence[str], **more: Any) -> ExtractOptions:
        """Return the extraction of whole grids at one of these sizes, normalised by the sets `keys`, which one size alone is read from.

        Sampled tokens would need one grid at all sizes of student and teachers.
        """
        options = self.extract.options(store, data, tuple(requests), self.views, **more)
        return replace(options, tokens_per_view=None, statistics_from=tuple(keys))


def read_recipes(
    files: Mapping[str, str], stages: tuple[int, ...], teachers: tuple[TeacherRequest, ...], layers: tuple[int, ...] = (),
    layer_weights: Mapping[str, float] = MappingProxyType({}), targets: TargetSource | None = None,
) -> DistillRecipes:  # fmt: skip
    """Return the recipes of `files`, by student and of "proxy" where stage 1 is among the stages; raises BadInput for what they lack.

    `layers`, `layer_weights` and `targets` are laid over those of the files; the weights where the teachers' own tokens are learnt, the
    targets' source in stage 3.
    """
    students = {name: source for name, source in files.items() if name != "proxy"}
    first = next(iter(students.values()))
    extract = extract_config(first, teachers)
    extract = replace(extract, layers=layers or extract.layers)
    of_layers = layer_settings(layer_weights)
    of_student = [] if 1 in stages else of_layers
    of_stage = {2: of_student, 3: of_student + ([] if targets is None else [f"teacher.source={targets}"])}
    loaded = {
        name: {stage: _student_stage(source, stage, name, of_stage[stage]) for stage in stages if stage != 1}
        for name, source in students.items()
    }
    proxy = load_recipe(files["proxy"], stage=1, settings=of_layers) if 1 in stages else None
    recipes = [resolved for by_stage in loaded.values() for resolved in by_stage.values()] + ([proxy] if proxy else [])
    drawn = ViewSpec(views_per_image=extract.views_per_image, seed=extract.seed)
    specs = [resolved.recipe.views.spec(drawn) for resolved in recipes]
    if any(spec != specs[0] for spec in specs):
        raise BadInput(f"the recipes of {', '.join(files)} have different views; students share the views of one extraction")
    return DistillRecipes(extract, specs[0], proxy, loaded, files)


def _student_stage(source: str, stage: int, student: str, settings: list[str]) -> ResolvedRecipe:
    recipe = load_recipe(source, stage=stage, settings=settings)
    named = recipe.recipe.student.architecture == student
    return recipe if named else load_recipe(source, stage=stage, settings=[*settings, f"student.architecture={student}"])


def extract_config(source: str, teachers: tuple[TeacherRequest, ...]) -> ExtractConfig:
    """Return a recipe's `[extract]` for the teachers that were asked for, at the sizes that were asked for; the defaults without one."""
    name, document = read_document(source)
    if 2 not in stages_of(document) and document.get("stage") != 2:
        raise BadInput(f"recipe {name} holds no stage 2, which trains the student; give one that does")
    names = [request.name for request in teachers]
    table = document.get("extract", {"teachers": names})
    config = build(ExtractConfig, table, where=f"recipe {name}, [extract]")
    sizes = {teacher: size for teacher, size in config.teacher_sizes_px.items() if teacher in names}
    sizes |= {request.name: request.size_px for request in teachers if request.size_px is not None}
    return replace(config, teachers=tuple(names), teacher_sizes_px=sizes)


def equivalent_command(
    resolved_from: str, stage: int, store: str, data: str, features: tuple[str, ...], out: Path, *extra: str
) -> list[str]:
    """Return the words of the `train` that a stage of a distillation is."""
    listed = [word for key in features for word in ("--features", key)]
    where = ["--recipe", resolved_from, "--store", store, "--data", data]
    return ["eupe-pipeline", "train", "--stage", str(stage), *where, *listed, "--out", str(out), *extra]
