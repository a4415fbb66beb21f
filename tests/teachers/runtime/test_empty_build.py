import threading

import pytest
import timm
import torch
from eupe_pipeline.teachers.encoders.architectures import Options
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.runtime.empty_build import build_empty
from torch import Tensor, nn

TIMM = ("test_vit", "test_convnext", "test_efficientnet", "test_nfnet", "test_vit_relpos", "test_mambaout")
OURS: tuple[Options, ...] = (
    {"name": "vit", "width": 32, "depth": 2, "heads": 2},
    {"name": "convnext", "widths": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
)


def same_after_a_load(plain: nn.Module, empty: nn.Module, pixels: Tensor) -> None:
    empty.load_state_dict(plain.state_dict(), strict=True)
    assert [name for name, _ in empty.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [one.requires_grad for one in empty.parameters()] == [one.requires_grad for one in plain.parameters()]
    ours, theirs = dict(empty.named_buffers()), dict(plain.named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        for mine, other in zip(flat(empty(pixels)), flat(plain(pixels)), strict=True):
            assert torch.equal(mine, other)


def flat(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_that_was_built_empty_and_loaded_is_the_one_that_was_saved(name: str) -> None:
    plain, empty = timm.create_model(name).eval(), build_empty(lambda: timm.create_model(name).eval())
    same_after_a_load(plain, empty, torch.randn(2, *plain.pretrained_cfg["input_size"]))


@pytest.mark.parametrize("architecture", OURS, ids=lambda one: one["name"])
def test_so_is_an_encoder_of_ours(architecture: Options) -> None:
    empty = build_empty(lambda: build_encoder(architecture).eval())
    same_after_a_load(build_encoder(architecture).eval(), empty, torch.randn(2, 3, 64, 64))


class Table(nn.Module):
    """Makes a table where its parameter is, as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(3, device=self.scale.device), persistent=False)


def test_a_table_that_was_made_beside_a_parameter_is_real() -> None:
    assert torch.equal(build_empty(Table).get_buffer("table"), torch.arange(3))


def test_modules_of_other_threads_are_built_as_ever() -> None:
    elsewhere: list[Tensor] = []

    def build() -> nn.Module:
        other = threading.Thread(target=lambda: elsewhere.append(nn.init.constant_(nn.Linear(2, 2).weight, 3.0)))
        other.start()
        other.join()
        return nn.Linear(2, 2)

    assert all(parameter.device.type == "cpu" for parameter in build_empty(build).parameters())
    assert torch.equal(elsewhere[0], torch.full((2, 2), 3.0))
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_a_build_that_fails_leaves_nothing_behind() -> None:
    def build() -> nn.Module:
        nn.Linear(2, 2)
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        build_empty(build)
    assert nn.Linear(2, 2).weight.device.type == "cpu"
