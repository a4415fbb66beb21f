"""The recipe's classes: ranges are checked where the value is made, and comparing leaves out what does not decide."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model import recipe as config
from eupe_pipeline.student.model.recipe import (
    AdapterConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TeacherWeights,
    TrainRecipe,
)

REFUSED: dict[str, Callable[[], Any]] = {
    "stage": lambda: TrainRecipe(stage=4),
    "seed": lambda: TrainRecipe(seed=-1),
    "precision": lambda: TrainRecipe(precision="bf32"),
    "device": lambda: TrainRecipe(device="gpu"),
    "target source": lambda: TeacherConfig("life"),
    "teacher.sizes_px": lambda: TeacherConfig("cached", (0,)),
    "teacher.weights": lambda: TeacherWeights(-1.0),
    "student.architecture": lambda: StudentConfig(""),
    "student.sizes_px": lambda: StudentConfig(sizes_px=()),
    "adapter.width": lambda: AdapterConfig(0),
    "loss.patch_cosine": lambda: LossConfig(patch_cosine=-0.1),
    "loss.smooth_l1_beta": lambda: LossConfig(smooth_l1_beta=0.0),
    "optimizer.learning_rate": lambda: OptimizerConfig(learning_rate=0.0),
    "optimizer.weight_decay": lambda: OptimizerConfig(weight_decay=-1.0),
    "optimizer.beta1": lambda: OptimizerConfig(beta1=1.0),
    "optimizer.eps": lambda: OptimizerConfig(eps=0.0),
    "optimizer.warmup_share": lambda: OptimizerConfig(warmup_share=1.0),
    "optimizer.final_learning_rate": lambda: OptimizerConfig(learning_rate=0.1, final_learning_rate=0.2),
    "optimizer.clip_norm": lambda: OptimizerConfig(clip_norm=-1.0),
    "run.steps": lambda: RunConfig(steps=0),
    "run.keep_checkpoints": lambda: RunConfig(keep_checkpoints=0),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_out_of_range_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(BadInput, match=key):
        REFUSED[key]()


def test_the_recipe_is_plain_json_and_back() -> None:
    recipe = TrainRecipe(teacher=TeacherConfig(weights={"a": TeacherWeights(0.5)}), student=StudentConfig(sizes_px=(48, 64)))
    plain = recipe.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["teacher"]["weights"] == {"a": {"cls": 0.5, "patch": 1.0}}
    assert plain["student"]["sizes_px"] == [48, 64]


def test_operational_values_do_not_decide_a_run() -> None:
    recipe = TrainRecipe()
    other = replace(recipe, run=replace(recipe.run, reader_threads=9, log_every=1, keep_checkpoints=5))
    assert other.decisive() == recipe.decisive()
    assert replace(recipe, seed=1).decisive() != recipe.decisive()
    assert replace(recipe, run=replace(recipe.run, steps=5)).decisive() != recipe.decisive()


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainRecipe().seed = 3  # type: ignore[misc]


def test_every_field_has_a_line_of_documentation() -> None:
    source = Path(config.__file__).read_text()
    classes: list[type[Any]] = [
        TrainRecipe,
        StudentConfig,
        TeacherConfig,
        AdapterConfig,
        LossConfig,
        OptimizerConfig,
        RunConfig,
        TeacherWeights,
    ]
    for one in classes:
        body = source.split(f"class {one.__name__}:")[1]
        for name in (field.name for field in dataclasses.fields(one)):
            line = body.split(f"\n    {name}: ")[1].split("\n")[1]
            assert line.strip().startswith('"""'), f"{one.__name__}.{name} has no line of documentation"
