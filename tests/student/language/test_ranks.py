"""Two ranks that share a language model out learn what one process learns, and their files fit each other."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.student.language.folder import load_llm
from eupe_pipeline.student.language.model import Batch, SeeingModel, batch_of, build_projector, share_out, trained_parameters
from eupe_pipeline.student.language.prompts import Text
from eupe_pipeline.student.language.recipe import StageRecipe
from eupe_pipeline.student.language.training import StageTraining, StageWork
from eupe_pipeline.student.model.ranks import ALONE, Ranks
from safetensors.torch import load_file

from ..gloo import on_ranks
from .tiny_llm import save_llm

RECIPE = StageRecipe(1.0, 5, 1e-3, 0.2, 0.0, 0.9, 0.999, 0.5, "center")  # ranks have 2 and 3 entries
PICTURED = (0, 1, 3, 4, 6)


def text_of(entry: int) -> Text:
    generator = np.random.default_rng(entry)
    ids = generator.integers(3, 60, 5 + entry)
    return Text(ids, np.arange(len(ids)) > 2 + entry % 2, 1 if entry in PICTURED else None)


def texts(entries: Sequence[int]) -> Batch:
    return batch_of([text_of(entry) for entry in entries], 4, 100)


def tokens(entries: Sequence[int]) -> torch.Tensor | None:
    shown = [torch.randn(4, 6, generator=torch.Generator().manual_seed(entry)) for entry in entries if entry in PICTURED]
    return torch.stack(shown) if shown else None


class Stopped(Exception):
    """The group died here."""


def train(ranks: Ranks, llm: Path, file: Path, micro_batch: int, stop_at: int, with_llm: bool = True) -> None:
    model, _ = load_llm(llm)
    torch.manual_seed(1)
    seeing = SeeingModel(build_projector(6, 32, 2), model)
    trained = trained_parameters(seeing, with_llm=with_llm)
    if ranks.count > 1:
        share_out(seeing, ranks.count)
    parameters = dict(seeing.named_parameters())
    work = StageWork(
        "vlm instruct", RECIPE, 6, 8, 7, file, micro_batch, 2, torch.device("cpu"), "fp32", texts, tokens, lambda event: None,
    )  # fmt: skip
    training = StageTraining(work, seeing, {name: parameters[name] for name in trained}, ranks)
    while training.done < stop_at:
        training._step()
        if training.done == 2:
            training._keep(training.partial, with_moments=True)
    if stop_at == work.steps:
        training.train()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("llm"), width=32, depth=2)


def close(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.long
@pytest.mark.parametrize(("with_llm", "tied"), [(True, False), (False, False), (True, True)])
def test_two_ranks_learn_what_one_process_learns_also_when_they_go_on_from_its_state(tmp_path: Path, with_llm: bool, tied: bool) -> None:
    llm = save_llm(tmp_path / "llm", width=32, depth=2, tied=tied)
    train(ALONE, llm, tmp_path / "one.safetensors", 5, 6, with_llm)
    on_ranks(2, tmp_path, train, llm, tmp_path / "two.safetensors", 2, 6, with_llm)
    close(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    train(ALONE, llm, tmp_path / "half.safetensors", 5, 3, with_llm)
    shutil.copy(tmp_path / "half.partial.safetensors", tmp_path / "on.partial.safetensors")
    on_ranks(2, tmp_path, train, llm, tmp_path / "on.safetensors", 2, 6, with_llm)
    close(tmp_path / "one.safetensors", tmp_path / "on.safetensors")
    assert not list(tmp_path.glob("on.partial*"))
    assert len(load_file(tmp_path / "one.safetensors")) == (4 + 21 - tied if with_llm else 4)


def test_micro_batches_share_a_step_in_any_way(llm: Path, tmp_path: Path) -> None:
    for micro_batch in (5, 2):
        train(ALONE, llm, tmp_path / f"{micro_batch}.safetensors", micro_batch, 6)
    close(tmp_path / "5.safetensors", tmp_path / "2.safetensors")
