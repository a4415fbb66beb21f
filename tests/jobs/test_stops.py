"""What the world ends a run with: a closed terminal as a scheduler's stop, a first NaN; each leaves a run that goes on to the same end."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.core.stop_signals import stop_signals
from eupe_pipeline.student.training.learner import Learner, TrainingDiverged
from safetensors.torch import load_file

from .training.test_train import RECIPE, STEPS, losses, run

EVERY = replace(RECIPE, run=replace(RECIPE.run, checkpoint_every=1000))


@pytest.fixture(scope="module")
def whole(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_store, EVERY, out)
    return out


def same(out: Path, whole: Path) -> bool:
    ours, theirs = (load_file(folder / "model" / "backbone.safetensors") for folder in (out, whole))
    return losses(out) == losses(whole) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_each_stop_signal_keeps_a_checkpoint_and_the_same_command_ends_as_if_nothing_had_come(
    tiny_store: Any, tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match=f"stopped after step 3 of {STEPS}"):
            run(tiny_store, EVERY, tmp_path / "run", on_event=stop)
    finally:
        signal.signal(number, before)
    assert run(tiny_store, EVERY, tmp_path / "run")["resumed_from"] == 3
    assert same(tmp_path / "run", whole)


def test_a_hangup_that_nohup_made_ignored_stays_ignored(tiny_store: Any, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
        run(tiny_store, EVERY, tmp_path / "run", on_event=lambda event: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_first_nan_leaves_the_steps_before_it_and_the_same_command_goes_on(
    tiny_store: Any, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.optimizer_step

    def poisoned(learner: Learner, step: int, image_ids: Any) -> None:
        if step == 5:
            learner._sums["", ""] = torch.tensor(float("nan"), dtype=torch.float64)
        real(learner, step, image_ids)

    monkeypatch.setattr(Learner, "optimizer_step", poisoned)
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 6; .*the state after step 5 is kept: the same command tries"):
        run(tiny_store, EVERY, tmp_path / "run")
    with pytest.raises(TrainingDiverged):  # and again: nothing is lost by trying
        run(tiny_store, EVERY, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000005"]
    monkeypatch.setattr(Learner, "optimizer_step", real)
    assert run(tiny_store, EVERY, tmp_path / "run")["resumed_from"] == 5
    assert same(tmp_path / "run", whole)


def test_a_nan_at_the_first_step_leaves_a_folder_that_another_recipe_may_take(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_refuse_non_finite", lambda self, step, values, ids: _diverge())
        with pytest.raises(TrainingDiverged):
            run(tiny_store, EVERY, tmp_path / "run")
    lower = replace(EVERY, optimizer=replace(EVERY.optimizer, learning_rate=1e-3))
    assert run(tiny_store, lower, tmp_path / "run")["resumed_from"] == 0


def _diverge() -> None:
    raise TrainingDiverged("made up")
