"""Every kind of teacher keeps the contract: the demonstration's two with random weights, a run, a timm model, a file of the user's own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from eupe_pipeline.teachers.registry.contract import TeacherContract
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import ROWS
from eupe_pipeline.teachers.registry.teacher import Teacher

from ..conftest import SMALL_VIT, make_run
from ..own_teachers import own_file


def own_teacher() -> Teacher:
    with tempfile.TemporaryDirectory() as folder:
        return load_teacher(resolve_teacher(own_file(Path(folder))))


@pytest.fixture(autouse=True, scope="module")
def _no_weights_at_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUPE_PIPELINE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


class RandomContract(TeacherContract):
    """A named teacher with random weights, at a size that two cores compute."""

    name: ClassVar[str]
    size_px: ClassVar[int] = 64

    def load(self) -> Teacher:
        return load_teacher(resolve_teacher(self.name, size_px=self.size_px, allow_random_weights=True))


class TestEfficientNetLite0(RandomContract):
    name = "efficientnet-lite0"


class TestKerasResNet50(RandomContract):
    name = "keras-resnet50"


class TestTimmByName(RandomContract):
    name = f"timm:{SMALL_VIT}"
    size_px = 32


class TestRun(TeacherContract):
    def load(self) -> Teacher:
        with tempfile.TemporaryDirectory() as folder:
            return load_teacher(resolve_teacher(str(make_run(Path(folder), "vit-mini", 32))))


class TestOwnFile(TeacherContract):
    def load(self) -> Teacher:
        return own_teacher()


class Broken(TeacherContract):
    """A teacher whose tokens depend on their neighbours, of one picture, and of the call."""

    def load(self) -> Teacher:
        teacher = own_teacher()
        inner = teacher.encoder.backbone.forward

        def noisy(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            cls_BD, patch_BHWD = inner(pixels_BCHW)
            noise = torch.rand(()) + pixels_BCHW.std(dim=0, keepdim=True).mean() if len(pixels_BCHW) > 1 else 40.0
            return cls_BD, patch_BHWD + noise * torch.linspace(-1, 1, patch_BHWD.shape[3])

        teacher.encoder.backbone.forward = noisy
        return teacher


@pytest.mark.parametrize("test", ["test_two_forwards_agree_bit_by_bit", "test_a_picture_has_the_same_tokens_in_any_batch"])
def test_the_contract_finds_tokens_that_are_not_the_pictures_alone(test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(Broken(), test)()


def test_the_large_rows_are_of_a_kind_that_runs_the_contract() -> None:
    small = {ROWS["efficientnet-lite0"].build, ROWS["keras-resnet50"].build}
    assert {row.build for row in ROWS.values()} == small
