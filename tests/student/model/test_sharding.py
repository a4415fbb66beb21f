"""Two gloo ranks train what one process trains; checkpoints of DDP and FSDP2 hold whole tensors and fit each other."""

from pathlib import Path

import pytest
import torch
from eupe_pipeline.student.model.losses import distillation_loss
from eupe_pipeline.student.model.optimizers import build_optimizer
from eupe_pipeline.student.model.ranks import ALONE, Ranks
from eupe_pipeline.student.model.recipe import LossConfig, OptimizerConfig
from eupe_pipeline.student.model.sharding import clip_gradient_norm, full_tensor, parallelize, set_gradient_sync
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.checkpoint import latest_checkpoint, restore, save_checkpoint
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.encoders.training_settings import set_activation_checkpointing
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..gloo import on_ranks

BATCH, STEPS = 9, 3  # two ranks have 4 and 5, four have 2, 2, 2 and 3
PROXY = {"name": "proxy-small", "width": 32, "heads": 2, "depth": 2, "mlp_hidden": 64}


def student() -> Student:
    torch.manual_seed(3)
    encoder = build_encoder(PROXY)
    set_activation_checkpointing(encoder, True)
    return Student(encoder, 24, {"t": TargetSpec(20, 20, (2, 2))})


def train(ranks: Ranks, way: str, optimizer_name: str, first: int, last: int, folder: Path) -> None:
    """Steps [first, last) over made-up batches in unequal parts, from and to checkpoints in `folder`; each part is two accumulated ones."""
    model = student()
    forward = parallelize(model, way, ranks)
    # eps: with the default, a gradient near zero becomes a whole step in whichever direction rounding gave it
    optimizer = build_optimizer(model, OptimizerConfig(name=optimizer_name, learning_rate=1e-2, weight_decay=0.02, clip_norm=0.5, eps=1e-4))
    if (found := latest_checkpoint(folder)) is not None:
        restore(found, model, optimizer)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randint(0, 256, (BATCH, 16, 16, 3), generator=generator).to(torch.uint8)
        cls_BD, patch_BHWD = torch.randn(BATCH, 20, generator=generator), torch.randn(BATCH, 2, 2, 20, generator=generator)
        start, stop = ranks.span(BATCH)
        for here, until in ((start, start + 1), (start + 1, stop)):
            set_gradient_sync(forward, until == stop)
            torch.manual_seed(step)
            targets = {"t": Tokens(cls_BD[here:until], patch_BHWD[here:until])}
            with sdpa_kernel([SDPBackend.MATH]):
                loss, _ = distillation_loss(forward(pixels[here:until]), targets, LossConfig(), {})
                (loss * (until - here) / BATCH * ranks.count).backward()  # type: ignore[no-untyped-call]
        clip_gradient_norm(list(model.parameters()), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    save_checkpoint(folder, last, model, optimizer, {}, 5, ranks=ranks)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = student()
    found = latest_checkpoint(folder)
    assert found is not None
    restore(found, model, build_optimizer(model, OptimizerConfig()))
    return dict(model.state_dict())


def assert_close(one: Path, other: Path) -> None:
    others = weights(other)
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, others[name], atol=3e-6), name


@pytest.mark.parametrize(("way", "optimizer"), [("ddp", "adamw"), pytest.param("fsdp", "adamw", marks=pytest.mark.long), ("fsdp", "lamb")])
def test_two_ranks_train_what_one_process_trains(tmp_path: Path, way: str, optimizer: str) -> None:
    train(ALONE, way, optimizer, 0, STEPS, tmp_path / "alone")
    on_ranks(2, tmp_path, train, way, optimizer, 0, STEPS, tmp_path / "two")
    assert_close(tmp_path / "two", tmp_path / "alone")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("fsdp", "alone", marks=pytest.mark.long),
        pytest.param("alone", "fsdp", marks=pytest.mark.long),
        pytest.param("ddp", "fsdp", marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_goes_on_in_another_way(tmp_path: Path, before: str, after: str) -> None:
    train(ALONE, "ddp", "lamb", 0, STEPS, tmp_path / "whole")
    for way, first, last in ((before, 0, 1), (after, 1, STEPS)):
        if way == "alone":
            train(ALONE, "ddp", "lamb", first, last, tmp_path / "cut")
        else:
            on_ranks(2, tmp_path, train, way, "lamb", first, last, tmp_path / "cut")
    assert_close(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_four_ranks_train_what_one_process_trains(tmp_path: Path, way: str) -> None:
    train(ALONE, way, "adamw", 0, STEPS, tmp_path / "alone")
    on_ranks(4, tmp_path, train, way, "adamw", 0, STEPS, tmp_path / "four")
    assert_close(tmp_path / "four", tmp_path / "alone")


def shares_are_smaller(ranks: Ranks, folder: Path) -> None:
    model = student()
    before = sum(parameter.numel() for parameter in model.parameters())
    parallelize(model, "fsdp", ranks)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[attr-defined]
    gathered = sum(full_tensor(parameter.detach()).numel() for parameter in model.parameters())
    assert local < 0.6 * before
    assert gathered == before


def test_fsdp_leaves_each_rank_its_share(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, shares_are_smaller, tmp_path)
