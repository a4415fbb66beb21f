"""Made-up results, runs and pictures in the exact form that the demo hands to the report, and a small real store."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures.pca import PcaPicture, pictures
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

RESULTS: dict[str, Any] = {
    "title": "CIFAR-10 demo",
    "facts": {"machine": "2 cores, 24 GB, no GPU", "data": "6,000 training and 1,000 test photos", "version": "0.1.0"},
    "knn": {
        "random": {
            "cls": {"paper": 9.5, "official": {"10": 9.8, "20": 9.7, "100": 10.1, "200": 10.0}},
            "mean_patch": {"paper": 24.1, "official": {"10": 25.0, "20": 25.6, "100": 26.1, "200": 25.2}},
        },
        "stage2": {"cls": {"paper": 41.3, "official": {"10": 42.0, "20": 42.6, "100": 42.2, "200": 41.4}}},
        "stage3": {"cls": {"paper": 43.0, "official": {"10": 43.9, "20": 44.0, "100": 43.2, "200": 42.7}}},
        "proxy": {"cls": {"paper": 47.8, "official": {"10": 48.1, "20": 48.8, "100": 48.0, "200": 47.1}}},
        "teachers": {
            "efficientnet-lite0": {"cls": {"paper": 79.9, "official": {"10": 80.2, "20": 80.1, "100": 78.0, "200": 76.5}}},
            "keras-resnet50": {"cls": {"paper": 78.6, "official": {"10": 78.9, "20": 78.4, "100": 76.2, "200": 74.8}}},
        },
    },
    "steps": {
        "index": {"seconds": 4.1, "rows": 7000, "rows_per_s": 1707.0},
        "extract two teachers": {"seconds": 171.0, "rows": 24000, "rows_per_s": 140.3},
        "train stage 1": {"seconds": 95.0, "rows": 12800, "rows_per_s": 134.7},
        "train stage 2": {"seconds": 130.0, "rows": 19200, "rows_per_s": 147.7},
    },
    "feature_sets": {
        "efficientnet-lite0@9f3a01c2d4e5": {"bytes": 311_000_000, "rows": 12000, "codec": "int8"},
        "keras-resnet50@77aa01c2d4e5": {"bytes": 409_000_000, "rows": 12000, "codec": "int8"},
    },
    "live": {
        "efficientnet-lite0": {"cached_s": 4.0, "live_s": 182.0, "basis": "104 images/s over 256 images"},
        "keras-resnet50": {"cached_s": 5.0, "live_s": 204.0, "basis": "94 images/s over 256 images"},
    },
}


def make_run(folder: Path, *, steps: int = 400, teachers: tuple[str, ...] = ("efficientnet-lite0", "keras-resnet50")) -> Path:
    """Write a run's recipe.json and metrics.jsonl with falling, noisy losses."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.02, (steps, len(teachers), 2))
    lines = []
    for step in range(1, steps + 1):
        fall = math.exp(-step / (steps / 3))
        losses = {
            name: {"cls": 0.35 + 0.6 * fall + noise[step - 1, n, 0], "patch": 0.5 + 0.5 * fall + noise[step - 1, n, 1]}
            for n, name in enumerate(teachers)
        }
        loss = sum(value for parts in losses.values() for value in parts.values())
        lines.append(json.dumps({"step": step, "loss": loss, "losses": losses, "images_per_s": 140.0, "wait_share": 0.012}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {
        "stage": 2,
        "student": {"architecture": "eupe_vitt16", "sizes_px": [64]},
        "optimizer": {"name": "adamw", "learning_rate": 0.001, "weight_decay": 1e-4},
    }
    origins = {
        "stage": "file demo.toml",
        "student.architecture": "paper",
        "student.sizes_px": "ours: 256 px would take hours on two cores",
        "optimizer.name": "default",
        "optimizer.learning_rate": "--set",
        "optimizer.weight_decay": "paper",
    }
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe, "origins": origins}))
    return folder


def make_pictures(photos: int = 4) -> list[PcaPicture]:
    """Draw photos of a bright disc on a slope, and tokens that know disc, slope and nothing."""
    random = np.random.default_rng(1)
    images, grids = [], []
    for n in range(photos):
        y, x = np.mgrid[0:32, 0:32]
        disc = ((y - 10 - 3 * n) ** 2 + (x - 16 + 2 * n) ** 2 < 60)[..., None]
        image = np.where(disc, [230, 120 + 30 * n, 60], np.stack([60 + 2 * x, 110 + 2 * y, 160 - 3 * y], -1))
        images.append(image.astype(np.uint8))
        grids.append(np.concatenate([disc, (x / 32)[..., None], (y / 32)[..., None]], -1))
    true_BHWC = np.stack(grids)
    mix = random.normal(size=(3, 24))
    tokens = {
        name: (true_BHWC[:, :: 32 // grid, :: 32 // grid] @ mix + random.normal(0, noise, (photos, grid, grid, 24))).astype(np.float32)
        for name, grid, noise in (("efficientnet-lite0", 4, 0.05), ("keras-resnet50", 8, 0.1), ("proxy", 8, 0.3), ("student", 4, 0.4))
    }
    return pictures(["ship", "horse", "automobile", "frog"][:photos], images, tokens)


@pytest.fixture
def results() -> dict[str, Any]:
    """The demo's results, made up."""
    return copy.deepcopy(RESULTS)


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run's folder by name; keyword arguments as `make_run`."""
    return lambda name="stage1", **values: make_run(tmp_path / name, **values)


@pytest.fixture
def drawn() -> list[PcaPicture]:
    """The picture grid of four photos and four encoders."""
    return make_pictures()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder tree of nine small PNGs in three labels."""
    random = np.random.default_rng(7)
    for label in ("cat", "dog", "ship"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(3):
            pixels = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{n}.png")
    return tmp_path / "photos"


@pytest.fixture
def small_store(tiny_store: Any, tmp_path: Path) -> tuple[str, FeatureReader]:
    """A copy of the tiny store in which feature set `tiny-int8` (48 rows in three shards) lacks its last shard's record."""
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    reader = FeatureStore.open(str(tmp_path / "store")).features("tiny-int8")
    (tmp_path / "store" / "features" / reader.key / "commits" / "000002.json").unlink()
    return str(tmp_path / "store"), reader
