"""A run that was begun before a value existed goes on as it was begun, to the bit, whatever the recipe says now."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import CacheMismatch, Interrupted
from eupe_pipeline.student.model.recipe import LEGACY_VALUES, AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics

from ..training_request import train

STEPS = 6
NOW = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 3, "layer_scale": 0.5}, (24,)),
    adapter=AdapterConfig(16),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1, weight_decay=0.5),
    run=RunConfig(STEPS, 6, checkpoint_every=3, log_every=1),
)
THEN = replace(
    NOW,
    student=replace(NOW.student, rope_draws="forward", initial_weights="timm"),
    optimizer=replace(NOW.optimizer, decayed="matrices"),
)


def run(tiny: Any, recipe: TrainRecipe, out: Path, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, ["tiny-teacher"], data="photos", out=out, **more)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


def stop_after(tiny: Any, recipe: TrainRecipe, out: Path, steps: int) -> None:
    """A run that is stopped, its record stripped of what records did not hold before."""
    asked = iter([False] * (steps - 1) + [True] * STEPS)
    with pytest.raises(Interrupted):
        run(tiny, recipe, out, stop_asked=lambda: next(asked))
    record = json.loads((out / "recipe.json").read_text())
    for dotted in LEGACY_VALUES:
        table, key = dotted.split(".")
        record["recipe"][table].pop(key)
        assert key not in record["decisive"][table]
    (out / "recipe.json").write_text(json.dumps(record))


def test_a_run_from_before_is_resumed_bit_equal_by_todays_recipe_and_says_so(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, THEN, tmp_path / "whole")
    run(tiny_store, NOW, tmp_path / "new")
    stop_after(tiny_store, THEN, tmp_path / "cut", 4)
    said: list[str] = []
    origins = dict.fromkeys(LEGACY_VALUES, "default")
    run(tiny_store, NOW, tmp_path / "cut", origins=origins, on_event=lambda event: said.append(str(event.get("text", ""))))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") != losses(tmp_path / "new")
    assert any("student.rope_draws: forward  # as the run in" in text for text in said)
    recorded = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    assert recorded["recipe"]["optimizer"]["decayed"] == "matrices"
    assert recorded["origins"] == dict.fromkeys(LEGACY_VALUES, "as this run was begun")
    assert run(tiny_store, NOW, tmp_path / "cut")["already"]


def test_a_value_that_was_set_on_the_command_is_not_quietly_given_up(tiny_store: Any, tmp_path: Path) -> None:
    stop_after(tiny_store, THEN, tmp_path / "cut", 4)
    with pytest.raises(CacheMismatch, match=r"student\.rope_draws: got 'block'"):
        run(tiny_store, NOW, tmp_path / "cut", origins={"student.rope_draws": "--set"})


def test_todays_run_is_resumed_bit_equal_and_with_other_draws_refused(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, NOW, tmp_path / "whole")
    asked = iter([False] * 3 + [True] * STEPS)
    with pytest.raises(Interrupted):
        run(tiny_store, NOW, tmp_path / "cut", stop_asked=lambda: next(asked))
    with pytest.raises(CacheMismatch, match=r"optimizer\.decayed.*student\.rope_draws"):
        run(tiny_store, THEN, tmp_path / "cut")
    run(tiny_store, NOW, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
