"""A step that diverges in the phase which knows of int8 is refused like any other, kept with its ranges, and computed again to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.reports.replay import replay_step
from eupe_pipeline.student.model.recipe import QuantiseConfig
from eupe_pipeline.student.training.checkpoint import INT8_RANGES, list_checkpoints, read_int8_ranges
from eupe_pipeline.student.training.learner import TrainingDiverged
from safetensors.torch import load_file, save_file

from .test_replay import RECIPE, STEP_3, half_done, poison, run

pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[quantise]'")


@pytest.mark.long
@pytest.mark.parametrize("aware_steps", [2, 3])
def test_a_step_that_diverges_in_the_phase_is_kept_with_its_ranges(tiny_store: Any, tmp_path: Path, aware_steps: int) -> None:
    """The third step is the first or the second of the phase; its checkpoint keeps the ranges of before."""
    recipe, out = replace(RECIPE, quantise=QuantiseConfig(aware_steps), run=replace(RECIPE.run, accumulate=1)), tmp_path / "run"
    half_done(tiny_store.store, out, recipe)
    before = read_int8_ranges(list_checkpoints(out / "checkpoints")[-1])
    assert (before is None) == (aware_steps == 2)
    poison(list_checkpoints(out / "checkpoints")[-1])
    with pytest.raises(TrainingDiverged, match=r"is nan at step 3; the weights were not changed"):
        run(tiny_store.store, out, recipe)
    assert (out / STEP_3 / f"{INT8_RANGES}.safetensors").is_file() == (aware_steps == 3)
    for kept in (out / STEP_3, list_checkpoints(out / "checkpoints")[-1]):
        after = read_int8_ranges(kept)
        assert (after is None) == (before is None)
        assert after is None or before is None or all(after[name].tolist() == before[name].tolist() for name in before)
    found = replay_step(folder=out)
    assert (found["equal"], found["loss"], found["step"]) == (True, "nan", 3)


def test_ranges_that_are_not_finite_are_refused(tiny_store: Any, tmp_path: Path) -> None:
    recipe, out = replace(RECIPE, quantise=QuantiseConfig(3)), tmp_path / "run"
    half_done(tiny_store.store, out, recipe)
    path = list_checkpoints(out / "checkpoints")[-1] / f"{INT8_RANGES}.safetensors"
    ranges = load_file(path)
    save_file({name: both for name, both in ranges.items() if "fc2" not in name}, path)
    with pytest.raises(Exception, match="of another student"):
        run(tiny_store.store, out, recipe)
