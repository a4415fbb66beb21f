"""Overfitting to the recorded views shows as a gap: small at the start, large after many epochs over a few photos."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.evaluation.agreement import AgreementOptions, evaluate_agreement
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.demo.cifar import unpack
from eupe_pipeline.pipeline.demo.fetch import CIFAR10
from eupe_pipeline.storage.core.cache_home import downloads_folder
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import AdapterConfig, DataConfig, OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics

from ...test_end_to_end import needs_demo_files
from ..training_request import train

PHOTOS, SHARE, STEPS = 80, 0.5, 80
MEMORISING = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (32,)),
    adapter=AdapterConfig(64),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_share=0.1),
    run=RunConfig(STEPS, 20, checkpoint_every=20, log_every=20, keep_best=True),
    data=DataConfig(hold_out=SHARE),
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """CIFAR-10 photos, one view each, with the tokens of EfficientNet-Lite0."""
    needs_demo_files()
    root = tmp_path_factory.mktemp("photographs")
    store = FeatureStore.create(str(root / "store"))
    build_index(store.objects, str(unpack(downloads_folder() / CIFAR10.filename, root / "cifar", "train", PHOTOS)), "photos")
    teacher = (TeacherRequest("efficientnet-lite0", size_px=64),)
    options = ExtractOptions(store.url, "photos", teacher, ViewSpec(), images_per_shard=32, statistics_batches=3, batch_size=32, workers=0)
    extract_features(options)
    return store


def test_a_student_that_sees_few_photos_for_long_has_a_gap_that_a_fresh_one_has_not(photographs: FeatureStore, tmp_path: Path) -> None:
    out, features = tmp_path / "run", ["efficientnet-lite0"]
    summary = train(MEMORISING, photographs, features, data="photos", out=out, watch=Watch("agreement", 20, images=40))
    measured: dict[int, dict[str, Any]] = {line["step"]: line["agreement"] for line in read_metrics(out) if "agreement" in line}
    fresh = evaluate_agreement(AgreementOptions(model=str(out / "initial"), store=photographs.url, images=40))
    gaps = [fresh["gap"]["agreement"], *(one["gap"]["agreement"] for one in measured.values())]
    assert abs(gaps[0]) < 0.05
    assert gaps == sorted(gaps)
    assert 0.2 < gaps[-1] < 0.9
    held_out = {step: one["held_out"]["agreement"] for step, one in measured.items()}
    assert fresh["agreement"] < 0.05 < max(held_out.values())  # it has learnt something of photos that it never saw
    assert summary["best_step"] == max(held_out, key=lambda step: held_out[step])
    best = evaluate_agreement(AgreementOptions(model=str(out / "best"), store=photographs.url, images=40))
    assert best["agreement"] == pytest.approx(max(held_out.values()), abs=1e-6)
