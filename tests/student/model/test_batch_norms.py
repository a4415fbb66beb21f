"""Students with batch norm: running statistics over ranks, in the moving average and in a step that diverges; what a run records."""

from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.batch_norms import (
    KeptStatistics,
    average_over_ranks,
    batch_norm_identity,
    counters,
    follow_statistics,
    running_statistics,
)
from eupe_pipeline.student.model.ranks import ALONE, Ranks
from eupe_pipeline.student.model.recipe import RunConfig
from torch import nn

from ..gloo import on_ranks


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))


def test_the_moving_average_follows_running_statistics_at_its_own_decay() -> None:
    """Without them, averaged weights would be evaluated with the statistics of the random start."""
    student, average = normed(), normed()
    average.load_state_dict(student.state_dict())
    start = [one.clone() for one in running_statistics(average)]
    student(torch.randn(8, 3, 9, 9))
    follow_statistics(average, student, 0.75)
    for before, ours, theirs in zip(start, running_statistics(average), running_statistics(student), strict=True):
        assert not torch.equal(before, theirs)
        torch.testing.assert_close(ours, 0.75 * before + 0.25 * theirs)
    assert [int(one) for one in counters(average)] == [1, 1]


def test_a_step_that_is_taken_back_leaves_the_statistics_as_they_were() -> None:
    student = normed()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    kept = KeptStatistics(student)
    student(torch.full((2, 3, 9, 9), torch.nan))
    assert not all(one.isfinite().all() for one in running_statistics(student))
    kept.put_back()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def _averaged(ranks: Ranks, folder: str) -> None:
    torch.manual_seed(0)
    student = normed()
    torch.manual_seed(1 + ranks.number)
    student(torch.randn(8, 3, 9, 9) + ranks.number)
    torch.save(torch.cat(running_statistics(student)), f"{folder}/before-{ranks.number}.pt")
    average_over_ranks(student, ranks)
    torch.save(torch.cat(running_statistics(student)), f"{folder}/after-{ranks.number}.pt")


def test_ranks_have_the_mean_of_their_running_statistics_after_a_step(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, _averaged, str(tmp_path))
    before, after = ([torch.load(tmp_path / f"{when}-{rank}.pt") for rank in (0, 1)] for when in ("before", "after"))
    assert not torch.equal(before[0], before[1])
    torch.testing.assert_close(after[0], (before[0] + before[1]) / 2)
    assert torch.equal(after[0], after[1])


def test_a_run_records_its_parts_and_ranks_only_where_they_decide_something() -> None:
    recorded = batch_norm_identity({"name": "timm:resnet10t"}, RunConfig(4, 8, accumulate=2), ALONE)
    assert (recorded["batch_norm"]["accumulate"], recorded["batch_norm"]["ranks"]) == (2, 1)
    for name in ("vit-mini", "convnext-mini", "timm:test_vit"):
        assert batch_norm_identity({"name": name}, RunConfig(4, 8, accumulate=2), ALONE) == {}


@pytest.mark.parametrize(("batch_size", "parts", "ranks"), [(1, 1, 1), (4, 3, 1), (8, 4, 4)])
def test_a_part_of_one_image_is_refused(batch_size: int, parts: int, ranks: int) -> None:
    with pytest.raises(BadInput, match="has batch norm, which needs two images, and gets parts of 1"):
        batch_norm_identity({"name": "timm:resnet10t"}, RunConfig(4, batch_size, accumulate=parts), Ranks(0, ranks))
    arguments: Any = {"name": "vit-mini"}
    assert batch_norm_identity(arguments, RunConfig(4, batch_size, accumulate=parts), Ranks(0, ranks)) == {}
