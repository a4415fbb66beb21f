"""The proof at length: eight rendered words and eight shapes are read through a random ViT and a real network, not when shuffled.

.venv/bin/python -m pytest -m long -s tests/jobs/vlm/test_reading.py      # prints the figures of docs/results/vlm.md
"""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from eupe_pipeline.jobs.vlm.vlm import evaluate_vlm
from eupe_pipeline.storage.core.cache_home import weights_folder

from .rendered import SHAPES, Rendered, options, prepare

WORDS = ("cat", "dog", "sun", "map", "ink", "oak", "fig", "jam")
LITE0 = "efficientnet-lite0"


def read_words(folder: Path, encoder: str | None, pictures: Rendered, *settings: str, shuffled: bool) -> float:
    run = prepare(folder, pictures)
    asked = options(pictures.write(folder / "data", shuffled=shuffled), run, pictures, "pretrain.epochs=1", *settings)
    started = time.perf_counter()
    results = evaluate_vlm(asked if encoder is None else replace(asked, model=encoder, out=folder / "out"))
    kind = f"{'shuffled' if shuffled else 'true'} {pictures.kind}s"
    print(f"{encoder or 'random ViT'}, {kind}: {results['accuracy']:.1f} %, {time.perf_counter() - started:.0f} s")
    accuracy: float = results["accuracy"]
    return accuracy


@pytest.mark.long
@pytest.mark.timeout(900)
def test_eight_words_are_read_through_a_random_vit_and_not_from_shuffled_pictures(tmp_path: Path) -> None:
    pictures, settings = Rendered(WORDS, 48, 2, 640, 160), ("instruct.epochs=12",)
    assert read_words(tmp_path / "true", None, pictures, *settings, shuffled=False) >= 80
    assert read_words(tmp_path / "shuffled", None, pictures, *settings, shuffled=True) <= 25, "chance is 12.5"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_eight_shapes_are_named_through_a_random_vit_and_not_from_shuffled_pictures(tmp_path: Path) -> None:
    pictures, settings = Rendered(tuple(SHAPES), 48, 8, 640, 160, "shape"), ("instruct.epochs=12",)
    assert read_words(tmp_path / "true", None, pictures, *settings, shuffled=False) >= 80
    assert read_words(tmp_path / "shuffled", None, pictures, *settings, shuffled=True) <= 25, "chance is 12.5"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (weights_folder() / f"{LITE0}.safetensors").is_file(), reason="eupe-pipeline demo --fetch-only fetches its weights")
def test_eight_words_are_read_through_a_network_that_learnt_from_photos(tmp_path: Path) -> None:
    pictures, settings = Rendered(WORDS, 128, 8, 640, 160), ("instruct.epochs=12",)
    assert read_words(tmp_path / "true", LITE0, pictures, *settings, shuffled=False) >= 80
    assert read_words(tmp_path / "shuffled", LITE0, pictures, *settings, shuffled=True) <= 25, "chance is 12.5"
