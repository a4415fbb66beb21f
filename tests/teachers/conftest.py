"""Teachers to test with: a small timm ViT and a run folder made on the spot, and the demonstration weights when they are there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.cache_home import weights_folder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.frozen import build_timm, inspect_timm
from eupe_pipeline.teachers.registry.resolve import resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec

SMALL_VIT = "test_vit.r160_in1k"  # timm's own test model: 0.4 M parameters, class token, learnt positions, 160 px
KINDS = ["timm vit", "run folder", "run folder, convnext", "efficientnet-lite0", "keras-resnet50"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_vit_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(build_timm(inspect_timm(SMALL_VIT).architecture).backbone.state_dict(), path)
    return path


def make_run(folder: Path, architecture: str, size_px: int) -> Path:
    """A finished run's model folder with seeded random weights."""
    torch.manual_seed(2)
    encoder = build_encoder(architecture)
    record = {"architecture": encoder.architecture, "size_px": size_px, "preprocessing": encoder.preprocessing.identity()}
    save_weights(encoder.state_dict(), folder / "model" / "backbone.safetensors")
    (folder / "model" / "model.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "proxy", "vit-mini", 32)


@pytest.fixture(scope="session")
def convnext_run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "convnext", "convnext-mini", 64)


def demonstration(name: str, size_px: int) -> TeacherSpec:
    """A demonstration teacher's spec, or a skip that says what is missing."""
    try:
        return resolve_teacher(name, size_px=size_px)
    except BadInput as error:
        if (weights_folder() / f"{name}.safetensors").exists():
            raise
        pytest.skip(f"needs real weights: {error}")


@pytest.fixture(scope="session", params=KINDS)
def spec(request: pytest.FixtureRequest, small_vit_weights: Path, run_folder: Path, convnext_run_folder: Path) -> TeacherSpec:
    """Each kind of teacher in turn, resolved."""
    makers: dict[str, Callable[[], TeacherSpec]] = {
        "timm vit": lambda: resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights),
        "run folder": lambda: resolve_teacher(str(run_folder)),
        "run folder, convnext": lambda: resolve_teacher(str(convnext_run_folder)),
        "efficientnet-lite0": lambda: demonstration("efficientnet-lite0", 64),
        "keras-resnet50": lambda: demonstration("keras-resnet50", 64),
    }
    return makers[str(request.param)]()
