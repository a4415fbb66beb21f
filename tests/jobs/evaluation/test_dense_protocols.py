"""The official probes' habits are followed under "official" and nowhere else, and records keep the two apart."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.correspondence import CorrespondenceOptions, evaluate_correspondence
from eupe_pipeline.jobs.evaluation.depth import evaluate_depth
from eupe_pipeline.jobs.evaluation.segmentation import evaluate_segmentation
from eupe_pipeline.storage.annotations.spair import keypoint_pairs, sample_pairs
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.dense_tokens import padding_px, patch_tokens, training_mode
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor, nn
from torch.nn import functional

from ..oracle import PREPROCESSING, ColourEncoder, PlaceEncoder, oracle_model
from . import test_depth as of_depth
from . import test_segmentation as of_masks
from .test_correspondence import draw_pair

CONVNEXT = {"name": "convnext", "depths": [1, 1, 1, 1], "widths": [8, 8, 16, 16]}
VIT = {"name": "vit", "width": 32, "depth": 1, "heads": 2, "patch_px": 8}


class WatchedEncoder(ColourEncoder):
    """Remembers in which mode it was for each batch, and has a batch norm that would change in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.modes: list[bool] = []

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        self.modes.append(self.training)
        return super().tokens(pixels_BCHW + 0 * self.norm(pixels_BCHW), grid)


def evaluate(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, **more: Any) -> tuple[dict[str, Any], list[bool]]:
    encoder, root = WatchedEncoder(), tmp_path / kind
    model = oracle_model(tmp_path / f"model-{protocol}", encoder)
    monkeypatch.setattr(f"eupe_pipeline.jobs.evaluation.{kind}.open_dense_model", lambda options: model)
    if not root.exists():
        for split, count in (("train", 3), ("val", 1)):
            (of_masks.draw_pictures if kind == "segmentation" else of_depth.planes)(root, count, split)
    more |= {"data": root, "protocol": protocol, "steps": 6, "evaluate_every": 3}
    if kind == "segmentation":
        result = evaluate_segmentation(replace(of_masks.OPTIONS, **more))
    else:
        result = evaluate_depth(replace(of_depth.OPTIONS, **more))
    assert not (encoder.modes and encoder.training)
    assert int(encoder.norm.num_batches_tracked or 0) == 0  # its statistics are frozen
    return result, encoder.modes


def test_the_official_segmentation_trains_its_first_head_on_an_encoder_in_training_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, modes = evaluate("segmentation", tmp_path, monkeypatch, "official")
    windows = (len(modes) - 6) // 2
    assert modes == [True] * 3 + [False] * windows + [False] * 3 + [False] * windows
    _, modes = evaluate("segmentation", tmp_path, monkeypatch, "ours")
    assert not any(modes)


def test_the_official_depth_trains_all_of_its_head_on_an_encoder_in_training_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, modes = evaluate("depth", tmp_path, monkeypatch, "official")
    assert modes == [True] * 3 + [False] + [True] * 3 + [False]
    _, modes = evaluate("depth", tmp_path, monkeypatch, "ours")
    assert not any(modes)


def teacher_of(encoder: Encoder, patch_dim: int) -> Teacher:
    spec = TeacherSpec("test", encoder.architecture, Path("none"), "0" * 64, PREPROCESSING, "none", None, patch_dim, (2, 2))
    return Teacher(spec, encoder)


def pixels(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 255, (1, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 96, (2, 3)), (70, 98, (2, 3)), (91, 127, (2, 4))])
def test_a_convnext_is_padded_to_4_by_the_official_depth_probe_and_to_its_stride_by_ours(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    teacher = teacher_of(build_encoder(CONVNEXT), 16)
    picture = pixels(height, width)
    found = patch_tokens(teacher, picture, [(height, width)], padding_px(teacher.encoder, official=True))
    x = PREPROCESSING.apply(torch.from_numpy(picture))
    more_h, more_w = -height % 4, -width % 4
    padded = functional.pad(x, (more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2))
    with torch.no_grad():
        wanted = teacher.encoder.tokens(padded, (0, 0)).patch_BHWD
    assert tuple(found.shape[1:3]) == grid == tuple(wanted.shape[1:3])
    torch.testing.assert_close(found, wanted)
    ours = patch_tokens(teacher, picture, [(height, width)], padding_px(teacher.encoder, official=False))
    assert tuple(ours.shape[1:3]) == (-(-height // 32), -(-width // 32))
    assert torch.equal(found, ours) == (height % 32 == 0 and width % 32 == 0)


def test_a_vit_is_padded_to_its_patch_by_both() -> None:
    encoder = build_encoder(VIT)
    assert padding_px(encoder, official=True) == padding_px(encoder, official=False) == 8


def test_a_rotary_embedding_draws_its_scale_only_in_training_mode() -> None:
    torch.manual_seed(0)
    teacher = teacher_of(build_encoder({**VIT, "rope_rescale": 2.0}), 32)
    still = patch_tokens(teacher, pixels(32, 32), [(32, 32)])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with training_mode(teacher.encoder, on=True):
            drawn.append(patch_tokens(teacher, pixels(32, 32), [(32, 32)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(patch_tokens(teacher, pixels(32, 32), [(32, 32)]), still)


def test_records_of_ours_are_as_they_were_before_protocols_had_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = evaluate("segmentation", tmp_path, monkeypatch, "ours", dry_run=True)
    assert list(ours["protocol"]) == ["data", "layers", "classes", "zero_is_ignored", "ignore", "view", "head"]
    assert ours["protocol"]["view"] == {**asdict(of_masks.VIEW), "scale": (1.0, 1.0)}
    official, _ = evaluate("segmentation", tmp_path, monkeypatch, "official", dry_run=True)
    assert official["protocol"]["name"] == "official"
    ours, _ = evaluate("depth", tmp_path, monkeypatch, "ours", dry_run=True)
    assert list(ours["protocol"]) == ["data", "layers", "bins", "per_metre", "mirrored_too", "view", "head"]
    official, _ = evaluate("depth", tmp_path, monkeypatch, "official", dry_run=True)
    assert official["protocol"]["name"] == "official"


def test_an_official_result_says_which_values_are_not_the_official_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official, _ = evaluate("depth", tmp_path, monkeypatch, "official", batch_size=2)
    assert official["differs_from_official"] == ["steps is 6", "batch_size is 2", "evaluate_every is 3"]
    ours, _ = evaluate("depth", tmp_path, monkeypatch, "ours", batch_size=2)
    assert "differs_from_official" not in ours
    with pytest.raises(BadInput, match="unknown protocol of a dense evaluation 'offical'; did you mean 'official'"):
        replace(of_depth.OPTIONS, protocol="offical")  # type: ignore[arg-type]


@pytest.fixture
def pairs_of(tmp_path: Path) -> Path:
    for number in range(7):
        draw_pair(tmp_path / "spair", "cat" if number < 5 else "dog", str(number), number)
    return tmp_path / "spair"


def test_a_sample_of_pairs_is_the_same_whatever_else_there_is(pairs_of: Path) -> None:
    pairs = keypoint_pairs(pairs_of)
    some = sample_pairs(pairs, 3)
    assert [pair.category for pair in some].count("cat") == 3
    assert [pair.category for pair in some].count("dog") == 2  # all that there are
    assert [pair.id for pair in sample_pairs(pairs[::-1], 3)] == [pair.id for pair in some][::-1]
    assert [pair.id for pair in sample_pairs([pair for pair in pairs if pair.category == "cat"], 3)] == [
        pair.id for pair in some if pair.category == "cat"
    ]


@pytest.mark.parametrize(("stride_px", "side_px"), [(14, 448), (16, 512), (8, 512)])
def test_the_papers_correspondence_takes_100_pairs_a_category_at_its_sizes(
    pairs_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride_px: int, side_px: int
) -> None:
    model = oracle_model(tmp_path / "model", PlaceEncoder())
    sized = replace(model, spec=replace(model.spec, preprocessing=replace(model.spec.preprocessing, size_px=8 * stride_px)))
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.correspondence.open_dense_model", lambda options: sized)
    plan = CorrespondenceOptions(model="oracle", data=pairs_of, device="cpu", dry_run=True)
    paper = evaluate_correspondence(replace(plan, protocol="paper"))["protocol"]
    assert (paper["name"], paper["pairs_per_category"], paper["side_px"]) == ("paper", 100, side_px)
    few = evaluate_correspondence(replace(plan, protocol="paper", pairs_per_category=1))
    assert few["protocol"]["data"]["pairs"] == 2
    ours = evaluate_correspondence(plan)["protocol"]
    assert list(ours) == ["data", "alpha", "threshold", "side_px", "layers", "upsampling", "similarity"]
    assert (ours["side_px"], ours["data"]["pairs"]) == (512, 7)
    with pytest.raises(BadInput, match="unknown protocol of correspondence"):
        replace(plan, protocol="official")  # type: ignore[arg-type]
