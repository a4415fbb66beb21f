"""Where a device has a queue, the host looks at a loss a step later: the same run to the bit, and no step that the host waits in.

A CPU has no queue, so that here it is made to read later as CUDA does; what only a CUDA device can show is at the end.
"""

import contextlib
import json
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from eupe_pipeline.pipeline.reports.replay import replay_step
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training import learner as learner_module
from eupe_pipeline.student.training.checkpoint import list_checkpoints
from eupe_pipeline.student.training.learner import Learner, TrainingDiverged
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.student.training.trainer import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from ...student.gloo import on_ranks
from ..training_request import train
from .test_train import RECIPE

STEPS = 6
VIT = replace(
    RECIPE,
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (24,), ema=0.9),
    run=RunConfig(STEPS, 4, checkpoint_every=2, log_every=3, reader_threads=2, accumulate=2),
)
RECIPES = {
    "adamw": VIT,
    "lamb": replace(VIT, optimizer=replace(VIT.optimizer, name="lamb")),
    "batch norm": replace(VIT, student=StudentConfig("timm:resnet10t", {}, (64,), ema=0.5)),
}
TWO_STUDENTS = ("vit-mini", "convnext-mini")


def run(tiny: Any, out: Path, recipe: TrainRecipe = VIT, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, ("tiny-teacher",), data="photos", out=out, **more)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "reads_later", lambda device: True)


@contextlib.contextmanager
def reading_later() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_module, "reads_later", lambda device: True)
        yield


@contextlib.contextmanager
def diverging(at: int, student: str | None = None) -> Iterator[None]:
    """Make the gradient of one step NaN, as a forward pass that overflows does."""
    real = Learner.optimizer_step

    def poisoned(learner: Learner, step: int, image_ids: Any) -> None:
        if step == at and student in (None, learner.name):
            assert learner.parameters[0].grad is not None
            learner.parameters[0].grad.fill_(float("nan"))
            learner._sums["", ""] = learner._sums["", ""] * float("nan")
        real(learner, step, image_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "optimizer_step", poisoned)
        yield


def tensors_in(out: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's files, by path and name."""
    files = sorted(out.rglob("*.safetensors"))
    assert files
    return {f"{path.relative_to(out)}:{name}": tensor for path in files for name, tensor in safetensors.torch.load_file(path).items()}


def need_equal(out: Path, other: Path) -> None:
    ours, theirs = tensors_in(out), tensors_in(other)
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num())] == []


def logged(out: Path) -> list[tuple[int, Any, Any]]:
    return [(line["step"], line["loss"], line["losses"]) for line in read_metrics(out)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_reads_later_is_the_same_to_the_bit(tiny_store: Any, tmp_path: Path, name: str) -> None:
    run(tiny_store, tmp_path / "now", RECIPES[name])
    with reading_later():
        run(tiny_store, tmp_path / "later", RECIPES[name])
    need_equal(tmp_path / "later", tmp_path / "now")
    assert logged(tmp_path / "later") == logged(tmp_path / "now")
    scores = [json.loads((tmp_path / way / "checkpoints/step-0000006/checkpoint.json").read_text())["score"] for way in ("now", "later")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("adamw", at) for at in (0, 1, 2, 4, 5)),
        ("lamb", 0),
        ("lamb", 4),
        pytest.param("batch norm", 4, marks=pytest.mark.long),
    ],
)  # step 2 is logged, after step 1 a checkpoint is written, step 5 is the last
def test_a_step_that_diverges_stops_it_with_the_same_words_and_weights(tiny_store: Any, tmp_path: Path, name: str, at: int) -> None:
    words = []
    for way, context in (("now", contextlib.nullcontext()), ("later", reading_later())):
        with context, diverging(at), pytest.raises(TrainingDiverged) as error:
            run(tiny_store, tmp_path / way, RECIPES[name])
        words.append(str(error.value).replace(str(tmp_path / way), "OUT"))
    assert f"at step {at + 1}; the weights were not changed" in words[0]
    assert words[1] == words[0]
    need_equal(tmp_path / "later", tmp_path / "now")
    kept = tmp_path / "later" / "nonfinite" / f"step-{at + 1:07d}"
    assert json.loads((kept / "bundle.json").read_text())["step"] == at
    assert [path.name for path in list_checkpoints(tmp_path / "later" / "checkpoints")][-1:] == ([f"step-{at:07d}"] if at else [])
    with reading_later():
        run(tiny_store, tmp_path / "later", RECIPES[name])
    run(tiny_store, tmp_path / "whole", RECIPES[name])
    shutil.rmtree(tmp_path / "later" / "nonfinite", ignore_errors=True)
    need_equal(tmp_path / "later" / "model", tmp_path / "whole" / "model")
    need_equal(tmp_path / "later" / "average", tmp_path / "whole" / "average")


def test_the_step_that_is_kept_is_the_one_that_diverged_and_not_the_next_one(tiny_store: Any, tmp_path: Path, later: None) -> None:
    """The poison lies in the weights, so that the step is computed again to the bit from what was kept."""
    with pytest.raises(Interrupted):
        run(tiny_store, tmp_path / "run", on_event=_stop_after_checkpoint)
    checkpoint = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "model.safetensors"
    tensors = safetensors.torch.load_file(checkpoint)
    tensors["encoder.backbone.blocks.0.mlp.fc1.weight"].view(-1)[0] = float("inf")
    safetensors.torch.save_file(tensors, checkpoint)
    with pytest.raises(TrainingDiverged, match="loss is nan at step 4"):
        run(tiny_store, tmp_path / "run")
    assert replay_step(folder=tmp_path / "run")["equal"] is True


def _stop_after_checkpoint(event: dict[str, Any]) -> None:
    if event["event"] == "checkpoint":
        os.kill(os.getpid(), signal.SIGTERM)


def test_weights_that_a_diverged_step_would_have_changed_are_not_evaluated(tiny_store: Any, tmp_path: Path, later: None) -> None:
    measured: list[int] = []

    def after_step(learners: Any, done: int) -> None:
        for learner in learners:
            learner.read()
        measured.append(done)

    real = Trainer.__init__
    with pytest.MonkeyPatch.context() as patch, diverging(3):
        patch.setattr(Trainer, "__init__", lambda self, *given, **named: real(self, *given, **{**named, "after_step": after_step}))
        with pytest.raises(TrainingDiverged):
            run(tiny_store, tmp_path / "run")
    assert measured == [1, 2, 3]


@pytest.mark.parametrize("which", TWO_STUDENTS)
def test_of_two_students_each_is_kept_as_its_own_finished_steps_left_it(tiny_store: Any, tmp_path: Path, later: None, which: str) -> None:
    recipe = replace(VIT, student=StudentConfig("vit-mini", {}, (64,)))
    run(tiny_store, tmp_path / "whole", recipe, students=TWO_STUDENTS)
    with diverging(3, which), pytest.raises(TrainingDiverged, match="at step 4; the weights were not changed"):
        run(tiny_store, tmp_path / "run", recipe, students=TWO_STUDENTS)
    run(tiny_store, tmp_path / "run", recipe, students=TWO_STUDENTS)
    for name in TWO_STUDENTS:
        need_equal(tmp_path / "run" / name / "model", tmp_path / "whole" / name / "model")


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations whose result the host has to wait for, on a device that has a queue."""

    WAITED_FOR = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITED_FOR:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def reads_of_steps(tiny: Any, out: Path, recipe: TrainRecipe) -> list[str]:
    """Return what the host reads in the steps that neither log nor save, after the first ones."""
    seen: list[str] = []
    real = Trainer.step

    def counted(self: Trainer, batch: Any) -> Any:
        with HostReads() as mode:
            learners = real(self, batch)
        seen.extend(mode.seen if batch.plan.step >= 2 else [])
        return learners

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", counted)
        run(tiny, out, replace(recipe, run=replace(recipe.run, log_every=STEPS, checkpoint_every=STEPS)))
    return seen


@pytest.mark.parametrize("name", ["adamw", "batch norm"])  # LAMB's counters of steps are the host's own
def test_the_host_reads_nothing_in_a_steady_step(tiny_store: Any, tmp_path: Path, name: str) -> None:
    with reading_later():
        assert reads_of_steps(tiny_store, tmp_path / "later", RECIPES[name]) == []


def two_ranks(ranks: Ranks, tiny: Any, folder: Path, recipe: TrainRecipe) -> None:
    run(tiny, folder / "now", recipe, ranks=ranks)
    with reading_later():
        run(tiny, folder / "later", recipe, ranks=ranks)
        with diverging(3), pytest.raises(TrainingDiverged, match="at step 4"):
            run(tiny, folder / "diverged", recipe, ranks=ranks)
        with pytest.raises(Interrupted, match="stopped after step 2"):  # asked in step 1
            run(tiny, folder / "stopped", recipe, ranks=ranks, stop_asked=lambda: ranks.number == 1)
        run(tiny, folder / "stopped", recipe, ranks=ranks)


@pytest.mark.long
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_ranks_that_read_later_train_the_same_and_stop_together(tiny_store: Any, tmp_path: Path, way: str) -> None:
    student = replace(VIT.student, ema=0.0 if way == "fsdp" else 0.9)
    recipe = replace(VIT, student=student, run=replace(VIT.run, parallel=way, accumulate=1))
    on_ranks(2, tmp_path, two_ranks, tiny_store, tmp_path, recipe)
    need_equal(tmp_path / "later", tmp_path / "now")
    assert logged(tmp_path / "later") == logged(tmp_path / "now")
    need_equal(tmp_path / "stopped" / "model", tmp_path / "now" / "model")
    assert [path.name for path in sorted((tmp_path / "diverged" / "checkpoints").iterdir())][-1] == "step-0000003"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECIPES)
def test_no_operation_of_a_steady_step_makes_the_host_wait_for_cuda(tiny_store: Any, tmp_path: Path, name: str) -> None:
    real = Trainer.step

    def watched(self: Trainer, batch: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if batch.plan.step >= 2 else "default")
        try:
            return real(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    recipe = replace(RECIPES[name], device="cuda", run=replace(RECIPES[name].run, log_every=STEPS, checkpoint_every=STEPS))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode is a prototype
        patch.setattr(Trainer, "step", watched)
        run(tiny_store, tmp_path / "run", recipe)  # raises at the first wait
