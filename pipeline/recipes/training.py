"""The recipe of a training run: a file's values, overridden by the command's options for targets, student and mixture."""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...storage.core.choices import TargetSource
from ...storage.core.errors import BadInput
from .load import ResolvedRecipe, load_recipe


def training_recipe(
    stage: int, recipe: str | None = None, *, settings: Sequence[str] = (), targets: TargetSource | None = None,
    students: Sequence[str] = (), data: Sequence[str] = (), hold_out: float | None = None,
    layer_weights: Mapping[str, float] = MappingProxyType({}),
) -> tuple[ResolvedRecipe, str]:  # fmt: skip
    """Return the recipe (default: eupe-stageN) overridden by all that is given, and the one dataset, "" where several are mixed.

    `settings` are words such as "run.steps=10"; `data` is one dataset, or several as NAME=SHARE, or none when the recipe mixes some. One
    of `students` is a recipe value like any other; several have a run each. `hold_out` is a share such as 0.01; `layer_weights` are by
    block, or by TEACHER/BLOCK. Raises BadInput.
    """
    dataset, shares = data_setting(data)
    source = [f"teacher.source={targets}"] if targets else []
    student = [f"student.architecture={students[0]}"] if len(students) == 1 else []
    held_out = [] if hold_out is None else [f"data.hold_out={float(hold_out)!r}"]
    overlaid = [*settings, *source, *student, *shares, *held_out, *layer_settings(layer_weights)]
    return load_recipe(recipe or f"eupe-stage{stage}", stage=stage, settings=overlaid), dataset


def layer_settings(layer_weights: Mapping[str, float]) -> list[str]:
    """Return the settings of a recipe that weights by block, or by TEACHER/BLOCK, are."""
    return [f"teacher.layers.{json.dumps(layer)}={float(weight)!r}" for layer, weight in layer_weights.items()]


def data_setting(data: Sequence[str]) -> tuple[str, list[str]]:
    """Return the one dataset, or "" and the recipe value that mixes several given as NAME=SHARE; raises BadInput."""
    if len(data) < 2 and "=" not in "".join(data):
        return "".join(data), []
    shares = [word.rpartition("=") for word in data]
    bad = [word for word, (name, _, share) in zip(data, shares, strict=True) if not name or not re.fullmatch(r"\d*\.?\d+", share)]
    if bad:
        raise BadInput(f"--data {bad[0]!r}: several datasets are given as NAME=SHARE, as in --data imagenet=0.1 --data lvd=0.9")
    return "", [f"data.shares={{{', '.join(f'{json.dumps(name)} = {float(share)}' for name, _, share in shares)}}}"]
