"""Correspondence between a picture and its image under a homography: where each point went is known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.correspondence import CorrespondenceOptions, evaluate_correspondence
from eupe_pipeline.storage.core.errors import BadInput
from numpy.typing import NDArray
from PIL import Image

from ..oracle import PlaceEncoder, oracle_model

HOMOGRAPHY = np.array([[0.85, 0.1, 20.0], [-0.05, 0.9, 14.0], [1e-4, 2e-4, 1.0]])
OPTIONS = CorrespondenceOptions(model="oracle", data=Path(), size_px=256, device="cpu")


def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
    there = np.hstack([points, np.ones((len(points), 1))]) @ HOMOGRAPHY.T
    found: NDArray[np.float64] = there[:, :2] / there[:, 2:]
    return found


def draw_pair(root: Path, category: str, name: str, seed: int, *, wrong: bool = False) -> None:
    """A picture of smooth colours that are nowhere the same, and its image; `wrong` puts the truth elsewhere."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:200, :240]
    picture = Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8))
    inverse = np.linalg.inv(HOMOGRAPHY)
    other = picture.transform(
        (240, 200), Image.Transform.PERSPECTIVE, (inverse / inverse[2, 2]).flatten()[:8].tolist(), Image.Resampling.BILINEAR
    )
    folder = root / "JPEGImages" / category
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{name}-a.png")
    other.save(folder / f"{name}-b.png")
    points = generator.uniform((40, 40), (200, 160), (6, 2))
    truth = moved(points) + (150 if wrong else 0)
    annotation: dict[str, Any] = {
        "src_imname": f"{name}-a.png", "trg_imname": f"{name}-b.png", "category": category, "src_kps": points.tolist(),
        "trg_kps": truth.tolist(), "trg_bndbox": [10, 10, 210, 170],
    }  # fmt: skip
    (root / "PairAnnotation" / "test").mkdir(parents=True, exist_ok=True)
    (root / "PairAnnotation" / "test" / f"{name}:{category}.json").write_text(json.dumps(annotation))


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    model = oracle_model(tmp_path / "model", PlaceEncoder())
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.correspondence.open_dense_model", lambda options: model)
    return tmp_path


def test_points_are_found_where_the_homography_took_them(oracle: Path) -> None:
    draw_pair(oracle / "spair", "cat", "0", 0)
    draw_pair(oracle / "spair", "cat", "1", 1)
    draw_pair(oracle / "spair", "dog", "2", 2, wrong=True)
    result = evaluate_correspondence(replace(OPTIONS, data=oracle / "spair"))
    assert result["categories"] == {"cat": 100.0, "dog": 0.0}
    assert (result["pck"], result["pairs"]) == (50.0, 3)
    assert result["pck_of_pairs"] == pytest.approx(200 / 3)
    oblong = evaluate_correspondence(replace(OPTIONS, data=oracle / "spair", size_px=(160, 256)))
    assert (oblong["categories"], oblong["pck_of_pairs"]) == (result["categories"], result["pck_of_pairs"])
    with pytest.raises(BadInput, match="resizes to squares, takes square inputs alone, got 160x256 px; --protocol ours takes others"):
        evaluate_correspondence(replace(OPTIONS, data=oracle / "spair", size_px=(160, 256), protocol="paper"))


def test_a_broken_annotation_and_another_layout_are_named(oracle: Path) -> None:
    with pytest.raises(BadInput, match="expected SPair-71k"):
        evaluate_correspondence(replace(OPTIONS, data=oracle))
    draw_pair(oracle / "spair", "cat", "0", 0)
    (oracle / "spair" / "PairAnnotation" / "test" / "1.json").write_text('{"category": "cat"}')
    with pytest.raises(BadInput, match=r"1\.json is not the annotation"):
        evaluate_correspondence(replace(OPTIONS, data=oracle / "spair"))
