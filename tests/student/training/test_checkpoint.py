"""Checkpoints: whole or absent, bit-exact, refused by name when damaged, and never one too many."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from eupe_pipeline.student.model.optimizers import build_optimizer
from eupe_pipeline.student.model.recipe import OptimizerConfig
from eupe_pipeline.student.model.versions import code_digest, versions
from eupe_pipeline.student.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_best,
    remove_leftovers,
    restore,
    save_checkpoint,
)
from torch import nn


def model_and_optimizer(name: str = "adamw", steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, OptimizerConfig(name=name, learning_rate=0.1))
    for _ in range(steps):
        advance(module, optimizer)
    return module, optimizer


def advance(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_restored_run_goes_on_bit_equal(tmp_path: Path, name: str) -> None:
    module, optimizer = model_and_optimizer(name)
    save_checkpoint(tmp_path, 3, module, optimizer, {}, keep=1)
    other, other_optimizer = model_and_optimizer(name, steps=0)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 3
    restore(checkpoint, other, other_optimizer)
    for _ in range(3):
        advance(module, optimizer)
        advance(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    module, optimizer = model_and_optimizer()
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, step, module, optimizer, {}, keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-0000010", "step-0000011"]


def scored(tmp_path: Path, *scores: Mapping[str, float | None]) -> list[int]:
    """Steps that are left of checkpoints with these scores, one kept beside the best."""
    module, optimizer = model_and_optimizer(steps=0)
    for step, score in enumerate(scores, start=1):
        advance(module, optimizer)
        save_checkpoint(tmp_path, step, module, optimizer, {"score": score}, keep=1, keep_best=True)
    return [int(folder.name[-7:]) for folder in list_checkpoints(tmp_path)]


def test_the_lowest_smoothed_loss_is_kept_beside_the_newest(tmp_path: Path) -> None:
    assert scored(tmp_path, {"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}, {"loss": 1.0}) == [2, 4]


def test_an_evaluation_counts_more_than_any_loss(tmp_path: Path) -> None:
    better, worse = {"loss": 9.0, "evaluation": 60.0}, {"loss": 1.0, "evaluation": 50.0}
    assert scored(tmp_path, {"loss": 0.1, "evaluation": None}, worse, better, worse) == [3, 4]


def test_the_best_weights_are_loaded(tmp_path: Path) -> None:
    assert scored(tmp_path, {"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}) == [1, 3]
    best, other = model_and_optimizer(steps=1)[0], model_and_optimizer(steps=0)[0]
    load_best(tmp_path, other)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), other.parameters(), strict=True))


def test_a_folder_that_was_being_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    module, optimizer = model_and_optimizer()
    save_checkpoint(tmp_path, 1, module, optimizer, {"recipe": {"seed": 1}}, keep=2)
    (tmp_path / ".tmp-7-abc-step-0000002").mkdir()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert checkpoint.metadata["recipe"] == {"seed": 1}


@pytest.mark.fault(19, "detected")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_cut_file_is_refused_by_name(tmp_path: Path, file: str) -> None:
    module, optimizer = model_and_optimizer()
    folder = save_checkpoint(tmp_path, 1, module, optimizer, {}, keep=1)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    with pytest.raises(CacheDamaged, match="step-0000001"):
        restore(checkpoint, module, optimizer)


@pytest.mark.fault(19, "detected")
def test_an_unreadable_description_is_refused_by_name(tmp_path: Path) -> None:
    module, optimizer = model_and_optimizer()
    folder = save_checkpoint(tmp_path, 1, module, optimizer, {}, keep=1)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(CacheDamaged, match="step-0000001"):
        latest_checkpoint(tmp_path)


@pytest.mark.fault(19, "detected")
def test_another_format_is_refused(tmp_path: Path) -> None:
    module, optimizer = model_and_optimizer()
    folder = save_checkpoint(tmp_path, 1, module, optimizer, {}, keep=1)
    (folder / "checkpoint.json").write_text('{"step": 1, "format": 99}')
    with pytest.raises(BadInput, match="format 99"):
        latest_checkpoint(tmp_path)


@pytest.mark.fault(19, "detected")
def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    module, optimizer = model_and_optimizer()
    save_checkpoint(tmp_path, 1, module, optimizer, {}, keep=1)
    other = nn.Linear(3, 4)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    with pytest.raises(CacheDamaged, match="cannot be loaded"):
        restore(checkpoint, other, build_optimizer(other, OptimizerConfig()))


@pytest.mark.fault(8, "detected")
def test_a_full_disk_says_how_much_was_needed_and_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = model_and_optimizer()
    save_checkpoint(tmp_path, 1, module, optimizer, {}, keep=1)

    def full(tensors: object, path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("eupe_pipeline.student.training.checkpoint.save_file", full)
    with pytest.raises(StoreUnavailable, match="bytes were needed"):
        save_checkpoint(tmp_path, 2, module, optimizer, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_librarys_own_disk_full_error_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from eupe_pipeline.student.training.checkpoint import _as_os_error

    assert _as_os_error(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")).errno == 28
    assert _as_os_error(RuntimeError("something else")).errno is None


def test_a_checkpoint_says_which_code_made_it(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    folder = save_checkpoint(tmp_path, 1, model, torch.optim.AdamW(model.parameters()), {"recipe": {}, "identities": {}}, keep=1)
    described = json.loads((folder / "checkpoint.json").read_text())
    assert described["versions"] == {**versions(), "code": code_digest()}
    assert re.fullmatch(r"[0-9a-f]{12}", code_digest())


def test_a_checkpoint_that_goes_is_gone_at_once_for_who_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while its files are being removed must not leave a folder that looks like a checkpoint."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    monkeypatch.setattr("shutil.rmtree", lambda *args, **more: None)  # the process dies here
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002"]
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) > 1
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]
