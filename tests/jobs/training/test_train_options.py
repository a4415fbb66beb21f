"""Several students in one pass, parts of a batch, moving averages and the rest: each option does what it says and nothing else."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.core.errors import BadInput, Interrupted
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.model.student import TargetSpec
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ..training_request import train

STEPS = 6
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {}, (32,)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(STEPS, 6, checkpoint_every=2, log_every=1, reader_threads=2),
)
BOTH = ("vit-mini", "convnext-mini")


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


def weights(out: Path, model: str = "model") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / model / "backbone.safetensors")


def run(tiny: Any, recipe: TrainRecipe, out: Path, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, more.pop("features", ("tiny-teacher",)), data="photos", out=out, **more)


def with_run(**changes: Any) -> TrainRecipe:
    return replace(RECIPE, run=replace(RECIPE.run, **changes))


def with_student(**changes: Any) -> TrainRecipe:
    return replace(RECIPE, student=replace(RECIPE.student, **changes))


class TestSeveralStudents:
    def test_each_is_trained_bit_equal_to_being_trained_alone(self, tiny_store: Any, tmp_path: Path) -> None:
        summary = run(tiny_store, RECIPE, tmp_path / "both", students=BOTH)
        assert set(summary["students"]) == set(BOTH)
        for name in BOTH:
            run(tiny_store, with_student(architecture=name), tmp_path / name)
            assert losses(tmp_path / "both" / name) == losses(tmp_path / name)
            assert (tmp_path / "both" / name / "recipe.json").read_text() == (tmp_path / name / "recipe.json").read_text()

    def test_images_and_targets_are_read_once(self, tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reads: list[int] = []
        reader_type = type(tiny_store.features())
        original = reader_type.read

        def counted(self: Any, rows: Any, *args: Any, **more: Any) -> Any:
            reads.append(len(rows))
            return original(self, rows, *args, **more)

        monkeypatch.setattr(reader_type, "read", counted)
        run(tiny_store, RECIPE, tmp_path / "both", students=BOTH)
        assert sum(reads) == STEPS * RECIPE.run.batch_size

    def test_a_stop_keeps_both_and_the_same_command_goes_on_bit_equal(self, tiny_store: Any, tmp_path: Path) -> None:
        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        run(tiny_store, RECIPE, tmp_path / "whole", students=BOTH)
        with pytest.raises(Interrupted, match="stopped after step 3"):
            run(tiny_store, RECIPE, tmp_path / "cut", students=BOTH, on_event=stop)
        run(tiny_store, RECIPE, tmp_path / "cut", students=BOTH)
        for name in BOTH:
            assert losses(tmp_path / "cut" / name) == losses(tmp_path / "whole" / name)

    def test_a_student_that_is_ahead_waits_for_the_other(self, tiny_store: Any, tmp_path: Path) -> None:
        """A kill between two students' checkpoints leaves them at different steps."""

        def die(event: dict[str, Any]) -> None:
            if event["event"] == "checkpoint" and event["step"] == 4:
                raise RuntimeError("power cut")

        run(tiny_store, RECIPE, tmp_path / "whole", students=BOTH)
        with pytest.raises(RuntimeError, match="power cut"):
            run(tiny_store, RECIPE, tmp_path / "cut", students=BOTH, on_event=die)
        behind = tmp_path / "cut" / BOTH[1] / "checkpoints" / "step-0000004"
        behind.rename(tmp_path / "gone")
        summary = run(tiny_store, RECIPE, tmp_path / "cut", students=BOTH)
        assert [summary["students"][name]["resumed_from"] for name in BOTH] == [4, 2]
        for name in BOTH:
            assert losses(tmp_path / "cut" / name) == losses(tmp_path / "whole" / name)

    def test_one_that_is_finished_is_left_alone(self, tiny_store: Any, tmp_path: Path) -> None:
        run(tiny_store, RECIPE, tmp_path / "both", students=BOTH)
        again = run(tiny_store, RECIPE, tmp_path / "both", students=(*BOTH[:1], "proxy-small"))
        assert again["students"]["vit-mini"]["already"]
        assert not again["students"]["proxy-small"]["already"]

    def test_stage_3_starts_each_from_its_own_run(self, tiny_store: Any, tmp_path: Path) -> None:
        run(tiny_store, RECIPE, tmp_path / "stage2", students=BOTH)
        recipe = replace(with_student(init_from=str(tmp_path / "stage2")), stage=3, teacher=TeacherConfig("live", (16, 32)))
        run(tiny_store, recipe, tmp_path / "stage3", students=BOTH, proxy=tiny_store.teacher_run)
        for name in BOTH:
            assert losses(tmp_path / "stage3" / name)[0] < losses(tmp_path / "stage2" / name)[0]

    def test_one_named_twice_is_refused(self, tiny_store: Any, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="named twice"):
            run(tiny_store, RECIPE, tmp_path / "run", students=("vit-mini", "vit-mini"))


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_accumulated_gradients_train_as_the_whole_batch_does_up_to_rounding(tiny_store: Any, tmp_path: Path, parts: int) -> None:
    run(tiny_store, RECIPE, tmp_path / "whole")
    run(tiny_store, with_run(accumulate=parts), tmp_path / "parts")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)


def test_recomputed_activations_change_nothing(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "kept")
    run(tiny_store, with_run(recompute_activations=True), tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


def test_a_run_may_change_its_parts_when_it_goes_on(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        run(tiny_store, RECIPE, tmp_path / "run", on_event=power_cut)
    summary = run(tiny_store, with_run(accumulate=3, recompute_activations=True), tmp_path / "run")
    assert summary["resumed_from"] == 4


def power_cut(event: dict[str, Any]) -> None:
    if event["event"] == "step" and event["step"] == 5:
        raise RuntimeError("power cut")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_a_compiled_student_trains_as_the_plain_one_does(tiny_store: Any, tmp_path: Path) -> None:
    plain = with_student(options={"depth": 1})
    run(tiny_store, plain, tmp_path / "plain")
    run(tiny_store, replace(plain, compile=True), tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    assert set(weights(tmp_path / "compiled")) == set(weights(tmp_path / "plain"))


class TestMovingAverage:
    def test_it_is_saved_beside_the_model_and_is_a_teacher_as_the_model_is(self, tiny_store: Any, tmp_path: Path) -> None:
        run(tiny_store, with_student(ema=0.5), tmp_path / "run")
        run(tiny_store, RECIPE, tmp_path / "plain")
        model, average = weights(tmp_path / "run"), weights(tmp_path / "run", "average/model")
        assert all(torch.equal(tensor, model[name]) for name, tensor in weights(tmp_path / "plain").items())
        assert any(not torch.equal(tensor, model[name]) for name, tensor in average.items())
        load_teacher(resolve_teacher(str(tmp_path / "run" / "average")))

    def test_it_is_what_the_formula_says(self, tiny_store: Any, tmp_path: Path) -> None:
        recipe = replace(with_student(ema=0.75), run=replace(RECIPE.run, checkpoint_every=1, keep_checkpoints=STEPS))
        run(tiny_store, recipe, tmp_path / "run")
        expected = weights(tmp_path / "run", "initial/model")
        for step in range(1, STEPS + 1):
            tensors = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / f"step-{step:07d}" / "model.safetensors")
            expected = {name: 0.75 * old + 0.25 * tensors[f"encoder.{name}"] for name, old in expected.items()}
        for name, tensor in weights(tmp_path / "run", "average/model").items():
            assert torch.allclose(tensor, expected[name], atol=1e-6)

    def test_it_goes_on_bit_equal(self, tiny_store: Any, tmp_path: Path) -> None:
        run(tiny_store, with_student(ema=0.5), tmp_path / "whole")
        with pytest.raises(RuntimeError, match="power cut"):
            run(tiny_store, with_student(ema=0.5), tmp_path / "cut", on_event=power_cut)
        run(tiny_store, with_student(ema=0.5), tmp_path / "cut")
        whole = weights(tmp_path / "whole", "average/model")
        assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "cut", "average/model").items())


def test_drop_path_changes_the_course_but_not_the_start_and_resumes_bit_equal(tiny_store: Any, tmp_path: Path) -> None:
    recipe = with_student(drop_path=0.5)
    run(tiny_store, RECIPE, tmp_path / "plain")
    run(tiny_store, recipe, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tiny_store, recipe, tmp_path / "cut", on_event=power_cut)
    run(tiny_store, recipe, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") != losses(tmp_path / "plain")
    starts = [weights(tmp_path / name, "initial/model") for name in ("plain", "whole")]
    assert all(torch.equal(tensor, starts[1][name]) for name, tensor in starts[0].items())


def test_a_dropped_teacher_counts_nothing_in_a_step_and_one_always_stays(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, stage=1, teacher=TeacherConfig(drop_probability=0.6), run=replace(RECIPE.run, steps=16))
    run(tiny_store, recipe, tmp_path / "run", features=("tiny-teacher", "tiny-int8"))
    counted = set()
    for line in read_metrics(tmp_path / "run"):
        sums = {name: terms["cls"] + terms["patch"] for name, terms in line["losses"].items()}
        options = {**sums, "both": sum(sums.values())}
        counted.add(min(options, key=lambda name: abs(options[name] - line["loss"])))
        assert min(abs(value - line["loss"]) for value in options.values()) < 1e-5
    assert counted == {"tiny-teacher", "tiny-int8", "both"}


@pytest.mark.parametrize(("table", "key", "value"), [
    ("student", "drop_path", 1.0), ("student", "ema", -0.1), ("teacher", "drop_probability", 1.0),
    ("run", "accumulate", 0), ("run", "accumulate", 7), ("run", "parallel", "pipeline"),
])  # fmt: skip
def test_values_out_of_range_are_refused(table: str, key: str, value: object) -> None:
    with pytest.raises(BadInput):
        replace(RECIPE, **{table: replace(getattr(RECIPE, table), **{key: value})})


def test_drop_path_reaches_the_encoder() -> None:
    student = initial_student(with_student(drop_path=0.3), {"t": TargetSpec(8, 8, (2, 2))})
    assert "DropPath(drop_prob=0.300)" in str(student.encoder)
