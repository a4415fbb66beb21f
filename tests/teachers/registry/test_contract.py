"""Every kind of teacher keeps the contract, small and with random weights: named ones, those of timm and transformers, runs, one's own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.frozen import build_timm
from eupe_pipeline.teachers.registry.contract import TeacherContract
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from eupe_pipeline.teachers.registry.table import ROWS
from eupe_pipeline.teachers.registry.teacher import Teacher

from ..checkpoints.test_sharded import split
from ..conftest import SMALL_VIT, make_run
from ..encoders.test_transformers_towers import save, small_model
from ..onnx_files import declare, small_graph
from ..own_teachers import own_file
from ..published_layouts import SMALL_DUNE, SMALL_RADIO, dune_tensors, radio_tensors, small_row


def own_teacher() -> Teacher:
    with tempfile.TemporaryDirectory() as folder:
        return load_teacher(resolve_teacher(own_file(Path(folder))))


@pytest.fixture(autouse=True, scope="module")
def _no_weights_at_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUPE_PIPELINE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setitem(ROWS, "radio-small", small_row("radio-small", SMALL_RADIO))
        patch.setitem(ROWS, "dune-small", small_row("dune-small", SMALL_DUNE))
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


class InFolder(TeacherContract):
    """A teacher whose files are written anew for each load."""

    def load(self) -> Teacher:
        with tempfile.TemporaryDirectory() as folder:
            return load_teacher(self.resolve(Path(folder)))

    def resolve(self, folder: Path) -> TeacherSpec:
        raise NotImplementedError


class TestOnnxFile(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        path = small_graph(folder / "net.onnx", batch=2)
        return resolve_teacher(declare(path, input=None, patch_output="grid", cls="attention pool", cls_output="largest"))


class TestRadioOfTransformers(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        return resolve_teacher(f"hf:{save(folder / 'radio', small_model('radio'))}")


class TestSam3OfTransformers(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        return resolve_teacher(f"hf:{save(folder / 'sam3', small_model('sam3_vit_model'))}")


class TestPublishedRadio(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        save_weights(radio_tensors(), folder / "radio.safetensors")
        return resolve_teacher("radio-small", weights=folder / "radio.safetensors")


class TestPublishedDune(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        save_weights(dune_tensors(), folder / "dune.safetensors")
        return resolve_teacher("dune-small", weights=folder / "dune.safetensors")


class TestInParts(InFolder):
    def resolve(self, folder: Path) -> TeacherSpec:
        torch.manual_seed(4)
        architecture = resolve_teacher(f"timm:{SMALL_VIT}", allow_random_weights=True).architecture
        return resolve_teacher(f"timm:{SMALL_VIT}", weights=split(build_timm(architecture).backbone.state_dict(), folder), size_px=32)


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
    small = {ROWS[name].build for name in ("efficientnet-lite0", "keras-resnet50", "radio-small")}
    assert {row.build for row in ROWS.values()} == small
