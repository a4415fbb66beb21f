"""What a student's teachers have in files has their names: the order in which teachers are given moves no tensor to another teacher."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import CacheDamaged, CacheMismatch
from eupe_pipeline.student.model.optimizers import build_optimizer
from eupe_pipeline.student.model.recipe import OptimizerConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.model.student import Student, TargetSpec, checkpoint_name
from eupe_pipeline.student.training.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_best,
    restore,
    save_checkpoint,
    step_in_name,
)
from eupe_pipeline.student.training.metrics import Metrics
from eupe_pipeline.student.training.run_folder import RunFolder, load_model, read_adapters, save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.runtime.devices import Choice
from safetensors.torch import load_file, save_file
from torch import Tensor

EQUAL = {"pecore-g": TargetSpec(6, 10, (2, 2)), "a.b.0": TargetSpec(6, 10, (2, 2)), "0": TargetSpec(None, 10, (2, 2))}
UNEQUAL = {**EQUAL, "wide": TargetSpec(12, 20, (2, 2))}


def student(specs: Mapping[str, TargetSpec], seed: int = 0) -> tuple[Student, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    found = Student(build_encoder({"name": "vit-mini", "depth": 1}), 16, specs)
    optimizer = build_optimizer(found, OptimizerConfig(learning_rate=0.1))
    for parameter in found.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return found, optimizer


def turned(specs: Mapping[str, TargetSpec]) -> dict[str, TargetSpec]:
    return dict(reversed(list(specs.items())))


def by_name(one: Student, optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Weight and both moments of every parameter, by its name in files."""
    states = {checkpoint_name(one, name): (value, optimizer.state[value]) for name, value in one.named_parameters()}
    return {name: (value.detach(), state["exp_avg"], state["exp_avg_sq"]) for name, (value, state) in states.items()}


def assert_same(one: dict[str, tuple[Tensor, Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


def as_format_1(folder: Path, one: Student) -> None:
    """Rewrite a checkpoint as it was before adapters had names: numbers in the student's order, and an order that nobody wrote down."""
    names = {checkpoint_name(one, name): name for name in one.state_dict()}
    for file in (path for path in (folder / "model.safetensors", folder / "average.safetensors") if path.is_file()):
        save_file({names[name]: tensor for name, tensor in load_file(file).items()}, file)
    groups = build_optimizer(one, OptimizerConfig()).param_groups
    own = {value: name for name, value in one.named_parameters()}
    numbers = {own[value]: number for number, value in enumerate(value for group in groups for value in group["params"])}
    moments = load_file(folder / "optimizer.safetensors").items()
    states = {f"{numbers[names[key.rpartition('/')[0]]]}/{key.rpartition('/')[2]}": tensor for key, tensor in moments}
    save_file(states, folder / "optimizer.safetensors")
    described = json.loads((folder / "checkpoint.json").read_text())
    described.pop("teachers", None)
    (folder / "checkpoint.json").write_text(json.dumps({**described, "format": 1}))


@pytest.mark.parametrize("specs", [EQUAL, UNEQUAL])
def test_a_checkpoint_is_restored_by_name_into_any_order_of_teachers(tmp_path: Path, specs: Mapping[str, TargetSpec]) -> None:
    one, optimizer = student(specs)
    save_checkpoint(tmp_path, 3, one, optimizer, {"score": {"loss": 1.0}}, keep=1, average=one)
    other, other_optimizer = student(turned(specs), seed=1)
    average, _ = student(turned(specs), seed=2)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    restore(newest, other, other_optimizer, average)
    assert_same(by_name(other, other_optimizer), by_name(one, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), other.parameters(), strict=True))
    third, _ = student(turned(specs), seed=3)
    load_best(tmp_path, third)
    assert all(torch.equal(a, b) for a, b in zip(third.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_of_before_is_restored_in_the_order_of_its_run(tmp_path: Path) -> None:
    one, optimizer = student(UNEQUAL)
    as_format_1(save_checkpoint(tmp_path / "checkpoints", 3, one, optimizer, {}, keep=1), one)
    metrics = Metrics(tmp_path, 0)
    metrics.write({"step": 2, "loss": 1.0, "losses": {name: {"patch": 1.0} for name in UNEQUAL}})
    metrics.write({"step": 4, "loss": 1.0, "losses": {name: {"patch": 1.0} for name in turned(UNEQUAL)}})
    metrics.close()
    order = RunFolder(tmp_path).teacher_order(sorted(UNEQUAL))
    assert order == list(UNEQUAL)
    other, other_optimizer = student({name: UNEQUAL[name] for name in order}, seed=1)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    restore(newest, other, other_optimizer)
    assert_same(by_name(other, other_optimizer), by_name(one, optimizer))


def test_the_order_of_a_run_is_by_name_or_what_it_recorded(tmp_path: Path) -> None:
    new, begun, initial, unknown = (RunFolder(tmp_path / name) for name in ("new", "begun", "initial", "unknown"))
    assert new.teacher_order(EQUAL) == sorted(EQUAL)
    one, optimizer = student(EQUAL)
    save_checkpoint(begun.checkpoints, 1, one, optimizer, {"teachers": list(EQUAL)}, keep=1)
    assert begun.teacher_order(sorted(EQUAL)) == list(EQUAL)
    with pytest.raises(CacheMismatch, match=r"other teachers: got \['other'\], wanted \['0', 'a\.b\.0', 'pecore-g'\]"):
        begun.teacher_order(["other"])
    save_model(one, initial.initial, size_px=16, targets={})
    assert initial.teacher_order(sorted(EQUAL)) == list(EQUAL)
    as_format_1(save_checkpoint(unknown.checkpoints, 1, one, optimizer, {}, keep=1), one)
    with pytest.raises(
        CacheMismatch, match=r"does not say which number is which teacher.*train in a new folder\. This one is left as it is"
    ):
        unknown.teacher_order(EQUAL)
    assert unknown.teacher_order(["only"]) == ["only"]


@pytest.mark.parametrize("specs", [EQUAL, UNEQUAL])
def test_a_model_is_a_start_for_teachers_in_any_order(tmp_path: Path, specs: Mapping[str, TargetSpec]) -> None:
    one, other = student(specs)[0], student(turned(specs), seed=1)[0]
    digests = {name: f"digest of {name}" for name in specs}
    save_model(one, tmp_path / "model", size_px=16, targets=digests)
    load_model(other, tmp_path, digests)
    found = read_adapters(tmp_path / "model")
    for each in (one, other):
        for name, heads in zip(each.teacher_names, each.adapters, strict=True):
            assert all(torch.equal(found[name][key], tensor) for key, tensor in heads.state_dict().items())
    with pytest.raises(CacheMismatch, match=r"adapters\.teachers\.0"):
        load_model(student({"pecore-g": specs["pecore-g"]})[0], tmp_path, digests)


def test_a_model_of_before_has_numbered_adapters_and_is_read_by_its_order(tmp_path: Path) -> None:
    one, other = student(EQUAL)[0], student(turned(EQUAL), seed=1)[0]
    save_model(one, tmp_path / "model", size_px=16, targets={})
    save_file({name: tensor.clone() for name, tensor in one.adapters.state_dict().items()}, tmp_path / "model" / "adapters.safetensors")
    record = json.loads((tmp_path / "model" / "adapters.json").read_text())
    del record["format"]
    (tmp_path / "model" / "adapters.json").write_text(json.dumps(record))
    load_model(other, tmp_path, {})
    for name, heads in zip(other.teacher_names, other.adapters, strict=True):
        assert torch.equal(heads.state_dict()["patch.3.weight"], one.adapters[list(EQUAL).index(name)].state_dict()["patch.3.weight"])


@pytest.mark.parametrize("names", [["pecore-g", "a.b.0"], ["pecore-g", "a.b.0", "other"]])
def test_a_checkpoint_of_other_teachers_is_refused_and_nobody_is_told_to_remove_it(tmp_path: Path, names: list[str]) -> None:
    one, optimizer = student(EQUAL)
    folder = save_checkpoint(tmp_path, 1, one, optimizer, {}, keep=1)
    other, other_optimizer = student({name: TargetSpec(6, 10, (2, 2)) for name in names})
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    with pytest.raises(CacheDamaged, match=r"is whole, and cannot be loaded into this student.*adapters\.") as refused:
        restore(newest, other, other_optimizer)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CacheDamaged, match="move that folder out") as damaged:
        restore(newest, one, optimizer)
    assert not any(word in f"{refused.value} {damaged.value}" for word in ("remove", "delete"))


def test_checkpoints_are_sorted_by_step_beyond_seven_digits(tmp_path: Path) -> None:
    one, optimizer = student({"0": EQUAL["0"]})
    for step in (9_999_998, 9_999_999, 10_000_000, 10_000_001):
        save_checkpoint(tmp_path, step, one, optimizer, {}, keep=2)
    (tmp_path / "step-0000009.bak").mkdir()
    assert [step_in_name(found.name) for found in list_checkpoints(tmp_path)] == [10_000_000, 10_000_001]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 10_000_001
    assert [step_in_name(name) for name in ("a/step-12", "step-", "step-x", "model", "initial/model", "step-1/model")] == [12, *[None] * 5]


def test_an_evaluation_that_an_older_checkpoint_repeats_does_not_make_it_the_best(tmp_path: Path) -> None:
    """Format 1 credited each checkpoint with the latest evaluation: of steps 2 to 4, only step 2 was evaluated, and got 60 %."""
    one, optimizer = student({"0": EQUAL["0"]})
    metrics = Metrics(tmp_path, 0)
    metrics.write({"step": 2, "knn": {"cls": {"paper": 60.0}}})
    metrics.close()
    for step, loss in ((2, 3.0), (3, 2.0), (4, 1.0)):
        score = {"loss": loss, "evaluation": 60.0 if step == 2 else 70.0}
        as_format_1(save_checkpoint(tmp_path / "checkpoints", step, one, optimizer, {"score": score}, keep=9), one)
    best = best_checkpoint(tmp_path / "checkpoints")
    assert best is not None
    assert step_in_name(best.name) == 2


def test_a_run_keeps_what_auto_was_when_it_began(tmp_path: Path) -> None:
    folder, then, now = RunFolder(tmp_path / "run"), Choice("bf16", "auto: CUDA capability 9.0"), Choice("fp32", "auto: no bf16 here")
    folder.begin(TrainRecipe(), {}, {"targets": {}}, {"precision": then})
    folder.begin(TrainRecipe(), {}, {"targets": {}}, {"precision": now})
    assert folder.choices() == {"precision": now}  # nothing was trained yet
    folder.begin(TrainRecipe(), {}, {"targets": {}}, {"precision": then})
    metrics = Metrics(folder.out, 0)
    metrics.write({"step": 1, "loss": 1.0})
    metrics.close()
    folder.begin(TrainRecipe(), {}, {"targets": {}}, {"precision": now})
    assert folder.choices() == {"precision": then}


def test_teachers_and_the_place_of_the_start_are_the_same_recipe_in_any_order_and_by_any_path() -> None:
    one, other = (TrainRecipe(teacher=TeacherConfig(names=names)) for names in (("a", "b"), ("b", "a")))
    assert one.decisive() == other.decisive()
    assert one.to_dict() != other.to_dict()
