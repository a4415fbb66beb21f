"""Depth over rendered planes: brightness is distance, so a linear head must find it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.depth import DepthOptions, evaluate_depth
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.dense_head import NYU_RECIPE
from eupe_pipeline.student.probes.depth import DepthView
from eupe_pipeline.student.probes.evaluation_records import list_records
from PIL import Image

from ..oracle import ColourEncoder, oracle_model

OPTIONS = DepthOptions(
    model="oracle", data=Path(), view=DepthView(crop_hw=(64, 96), turn_degrees=0.0, distort=False),
    head=replace(NYU_RECIPE, batch_size=4, learning_rate=0.05), steps=250, device="cpu",
)  # fmt: skip


def planes(root: Path, count: int, split: str) -> list[str]:
    """Tilted planes between 1 and 9 m: the picture's red rises with the distance; returns NYU's lines."""
    generator, lines = np.random.default_rng(count), []
    y, x = np.mgrid[:64, :96] / 64
    for number in range(count):
        a, b = generator.uniform(-2.5, 2.5, 2)
        metres = np.clip(5 + a * (y - 0.5) + b * (x - 0.75), 1, 9)
        share = (metres - 1) / 8
        picture = np.stack([255 * share, 255 * (1 - share), np.full_like(share, 90)], axis=-1)
        for folder, values in (("rgb", picture.astype(np.uint8)), ("depth", (1000 * metres).astype(np.uint16))):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / split / f"{number}.png")
        lines.append(f"/rgb/{split}/{number}.png depth/{split}/{number}.png 518.8579")
    return lines


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", ColourEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.depth.open_dense_model", lambda options: model)
    return tmp_path


def test_planes_are_measured_to_a_few_decimetres(oracle: Path) -> None:
    planes(oracle / "data", 8, "train")
    planes(oracle / "data", 3, "val")
    result = evaluate_depth(replace(OPTIONS, data=oracle / "data"))
    assert result["rmse"] < 0.5
    assert result["abs_rel"] < 0.1
    assert result["delta1"] > 0.95
    (record,) = list_records(oracle / "model")
    assert (record["protocol"]["bins"], record["protocol"]["view"]["nyu_crops"]) == (256, False)


def test_nyus_lists_name_the_files_and_bring_its_crops(oracle: Path) -> None:
    for split, name in (("train", "nyu_train.txt"), ("val", "nyu_test.txt")):
        lines = planes(oracle / "data", 3 if split == "train" else 2, split)
        (oracle / "data" / name).write_text("\n".join([*lines, f"/rgb/{split}/0.png None 518.8579"]))
    plan = evaluate_depth(replace(OPTIONS, data=oracle / "data", dry_run=True))
    assert plan["protocol"]["view"]["nyu_crops"] is True
    assert plan["protocol"]["data"]["train"]["pictures"] == 3
    assert evaluate_depth(replace(OPTIONS, data=oracle / "data", steps=4))["rmse"] > 0


def test_depth_in_another_unit_is_noticed(oracle: Path) -> None:
    planes(oracle / "data", 3, "train")
    planes(oracle / "data", 1, "val")
    with pytest.raises(BadInput, match="--per-metre"):
        evaluate_depth(replace(OPTIONS, data=oracle / "data", steps=2, per_metre=1.0))
