"""Teachers without a class token: what a student's class token alone depends on is not trained, and nothing waits for its gradient."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.recipe import AdapterConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.model.student import TargetSpec
from eupe_pipeline.student.training.run_folder import read_metrics

from ...conftest import teacher_tokens
from ..training_request import train
from .test_train import interrupt_after

HEADED = "timm:mobilenetv3_small_050"
RECIPE = TrainRecipe(
    seed=1, precision="fp32", device="cpu", student=StudentConfig(HEADED, {}, (64,)), adapter=AdapterConfig(8),
    run=RunConfig(4, 4, checkpoint_every=2, log_every=1, reader_threads=1),
)  # fmt: skip


@pytest.fixture
def store(tiny_store: Any, tmp_path: Path) -> FeatureStore:
    """The tiny store with a set `patches` of the same teacher's patch tokens alone."""
    copied = FeatureStore.open(shutil.copytree(tiny_store.store.url, tmp_path / "store"))
    teacher, views = tiny_store.teacher, copied.features("tiny-teacher").views
    _, patch_nHWD, _ = teacher_tokens(teacher, views)
    moments = Moments(patch_nHWD.shape[3])
    moments.update(patch_nHWD)
    statistics = Statistics.from_moments(None, moments, len(patch_nHWD))
    spec = replace(teacher.spec, name="patches", cls="none", cls_dim=None)
    layout = FeatureLayout(None, patch_nHWD.shape[3], spec.grid, "fp32")
    reader = FeatureReader.create(
        copied.objects, "patches", views,
        features_identity(spec.identity(), views, statistics, {"views_measured": len(patch_nHWD)}, layout), statistics,
    )  # fmt: skip
    for shard in range(views.shards):
        record = views.group.record(shard)
        assert record is not None
        reader.commit_shard(
            shard, reader.encode(None, statistics.normalize_patch(patch_nHWD[slice(*views.group.shard_span(shard))])), {}, record.digest
        )
    return copied


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(store: FeatureStore, tmp_path: Path) -> None:
    train(RECIPE, store, ["patches"], data="photos", out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(RECIPE, store, ["patches"], data="photos", out=tmp_path / "stopped", on_event=interrupt_after(2))
    assert train(RECIPE, store, ["patches"], data="photos", out=tmp_path / "stopped")["resumed_from"] == 2
    assert [line["loss"] for line in read_metrics(tmp_path / "stopped")] == [line["loss"] for line in read_metrics(tmp_path / "whole")]
    whole, stopped = ((tmp_path / name / "model" / "backbone.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize("cls_dim", [None, 6])
@pytest.mark.parametrize("name", [HEADED, "timm:hgnetv2_b0", "timm:test_vit", "timm:test_convnext", "vit-mini", "convnext-mini"])
def test_every_parameter_that_is_trained_has_a_gradient(name: str, cls_dim: int | None) -> None:
    """DDP waits for it, and a checkpoint has the optimiser's state of each."""
    recipe = replace(RECIPE, student=StudentConfig(name, {}, (64,)))
    student = initial_student(recipe, {"one": TargetSpec(cls_dim, 6, (2, 2))})
    predicted = student(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))["one"]
    sum(tokens.sum() for tokens in predicted if tokens is not None).backward()
    assert not [name for name, value in student.named_parameters() if value.requires_grad and value.grad is None]


def test_what_only_the_class_token_needs_is_trained_as_soon_as_one_teacher_has_one() -> None:
    specs = {"patches": TargetSpec(None, 6, (2, 2)), "both": TargetSpec(6, 6, (2, 2))}
    for taught, trained in ((specs, True), ({"patches": specs["patches"]}, False)):
        backbone = initial_student(RECIPE, taught).encoder.backbone
        assert backbone.get_parameter("conv_head.weight").requires_grad == trained
        assert backbone.get_parameter("conv_stem.weight").requires_grad
