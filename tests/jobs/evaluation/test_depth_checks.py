"""Depth that cannot give a figure is refused before the first step, and a batch without any teaches nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.depth import evaluate_depth
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.sources.decode import BadImage
from eupe_pipeline.student.probes.dense_head import NYU_RECIPE, DenseHead
from eupe_pipeline.student.probes.depth import DepthView, log_loss, training_depth_loss
from eupe_pipeline.student.probes.head_training import HeadTraining
from PIL import Image
from torch import Tensor

from ..oracle import ColourEncoder, oracle_model
from .test_depth import OPTIONS, planes


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", ColourEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.depth.open_dense_model", lambda options: model)
    for split, count in (("train", 3), ("val", 2)):
        planes(tmp_path / "data", count, split)
    return tmp_path


@pytest.mark.parametrize(("split", "why"), [("train", "no training picture has a pixel with depth"), ("val", "no validation picture")])
def test_a_split_without_depth_is_refused_before_the_first_step(oracle: Path, split: str, why: str) -> None:
    for path in (oracle / "data" / "depth" / split).iterdir():
        Image.fromarray(np.zeros((64, 96), np.uint16)).save(path)
    with pytest.raises(BadInput, match=why):
        evaluate_depth(replace(OPTIONS, data=oracle / "data", dry_run=True))


def test_one_picture_without_depth_among_others_is_left_out(oracle: Path) -> None:
    Image.fromarray(np.zeros((64, 96), np.uint16)).save(oracle / "data" / "depth" / "train" / "0.png")
    Image.fromarray(np.zeros((64, 96), np.uint16)).save(oracle / "data" / "depth" / "val" / "0.png")
    alone = replace(OPTIONS, data=oracle / "data", steps=12, head=replace(OPTIONS.head, batch_size=1))
    assert np.isfinite(evaluate_depth(alone)["rmse"])


def test_negative_depth_is_refused_by_its_file(oracle: Path) -> None:
    path = oracle / "data" / "depth" / "train" / "0.png"
    metres = np.asarray(Image.open(path)).astype(np.float32) / 1000
    metres[:4] = -1
    path.unlink()
    np.save(path.with_suffix(".npy"), metres)
    with pytest.raises(BadImage, match=r"train/0\.npy: depth of -1 m; where nothing was measured it is 0, never negative"):
        evaluate_depth(replace(OPTIONS, data=oracle / "data"))


@pytest.mark.parametrize("measured", [0, 1])
@pytest.mark.parametrize("step", [0, 500])
def test_a_batch_with_next_to_no_depth_has_a_finite_loss(measured: int, step: int) -> None:
    logits, truth = torch.randn(1, 4, 3, 3, requires_grad=True), torch.zeros(1, 1, 6, 6)
    truth[0, 0, 0, :measured] = 2.0
    loss = training_depth_loss(logits, truth, DepthView(), step)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert float(log_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), step)) > 0


def test_a_head_whose_loss_is_no_number_stops_before_its_state_is_kept(tmp_path: Path) -> None:
    def broken(head: DenseHead, batch: Tensor, step: int) -> Tensor:
        logits: Tensor = head(batch)
        return logits.sum() * (float("nan") if step == 3 else 0.0)

    file = tmp_path / "head.safetensors"
    training = HeadTraining(
        DenseHead(3, 2), replace(NYU_RECIPE, batch_size=2), file, seed=0, make_batch=lambda step: torch.ones(2, 4, 4, 3), loss_of=broken,
        on_event=lambda event: None,
    )  # fmt: skip
    with pytest.raises(BadInput, match="the head's loss is nan at step 3"):
        training.train_until(10)
    assert not file.exists()


def test_tokens_that_are_not_finite_give_no_figure(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ColourEncoder()
    with torch.no_grad():
        encoder.mixing[0, 0] = float("nan")
    model = oracle_model(oracle / "broken", encoder)
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.depth.open_dense_model", lambda options: model)
    with pytest.raises(BadInput, match="oracle gives tokens that are not finite"):
        evaluate_depth(replace(OPTIONS, data=oracle / "data", steps=4))
