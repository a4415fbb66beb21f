"""Recall in both directions against a restatement with plain lists; ties count against; constant vectors find nothing."""

import math
import random

import pytest
import torch
from eupe_pipeline.jobs.retrieval import recall
from eupe_pipeline.jobs.retrieval.recall import RECALLS, retrieval_recalls


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def restated(images: list[list[float]], texts: list[list[float]], image_of: list[int]) -> dict[str, float]:
    """Sort everything for each query and look at the first k."""
    recalls = {}
    for k in RECALLS:
        found = 0
        for number, image in enumerate(images):
            nearest = sorted(range(len(texts)), key=lambda text: -cosine(image, texts[text]))[:k]
            found += any(image_of[text] == number for text in nearest)
        recalls[f"image_to_text_r{k}"] = 100 * found / len(images)
        found = 0
        for number, text in enumerate(texts):
            nearest = sorted(range(len(images)), key=lambda image: -cosine(text, images[image]))[:k]
            found += image_of[number] in nearest
        recalls[f"text_to_image_r{k}"] = 100 * found / len(texts)
    return recalls


@pytest.mark.parametrize("seed", range(3))
def test_recalls_are_those_of_sorted_lists_with_unequal_numbers_of_captions(seed: int) -> None:
    draw = random.Random(seed)
    images = [[draw.gauss(0, 1) for _ in range(6)] for _ in range(40)]
    image_of = [number for number in range(40) for _ in range(1 + number % 5)]
    draw.shuffle(image_of)
    texts = [[value + draw.gauss(0, 1.2) for value in images[number]] for number in image_of]
    wanted = restated(images, texts, image_of)
    found = retrieval_recalls(torch.tensor(images), torch.tensor(texts), torch.tensor(image_of))
    assert found == pytest.approx(wanted)
    assert 0 < found["text_to_image_r1"] < found["text_to_image_r10"] < 100
    assert found["image_to_text_r1"] != found["text_to_image_r1"]


def test_many_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images, image_of = torch.randn(30, 8), torch.arange(30).repeat(2)
    texts = images[image_of] + 0.7 * torch.randn(60, 8)
    whole = retrieval_recalls(images, texts, image_of)
    monkeypatch.setattr(recall, "_AT_ONCE", 7)
    assert retrieval_recalls(images, texts, image_of) == whole


def test_a_model_that_maps_everything_to_one_point_finds_nothing() -> None:
    found = retrieval_recalls(torch.ones(20, 4), torch.ones(40, 4), torch.arange(20).repeat(2))
    assert set(found.values()) == {0.0}


def test_equal_vectors_are_all_found() -> None:
    vectors = torch.eye(12)
    assert set(retrieval_recalls(vectors, vectors * 3, torch.arange(12)).values()) == {100.0}
