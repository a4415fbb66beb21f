"""kNN by its three protocols: by hand, against a plain loop, and what is refused."""

import time

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.knn import embed, knn
from eupe_pipeline.teachers.encoders.tokens import Tokens
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def directions(*degrees: float) -> Floats:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def labels(*values: int) -> Labels:
    return np.array(values, np.int64)


def clouds(seed: int, count: int) -> tuple[Floats, Labels]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 4, count)
    return (np.eye(4, 12)[truth] + generator.normal(0, 0.45, (count, 12))).astype(np.float32), truth


def knn_ours(bank: Floats, bank_labels: Labels, queries: Floats, truth: Labels, k: int = 10) -> float:
    return knn(bank, bank_labels, queries, truth, k=k, ks=()).ours


def knn_paper(bank: Floats, bank_labels: Labels, queries: Floats, truth: Labels, k: int = 10) -> float:
    return knn(bank, bank_labels, queries, truth, k=k, ks=()).paper


def knn_official(
    bank: Floats, bank_labels: Labels, queries: Floats, truth: Labels, ks: tuple[int, ...] = (10, 20, 100, 200), temperature: float = 0.07
) -> dict[int, float]:
    return knn(bank, bank_labels, queries, truth, k=1, ks=ks, temperature=temperature).official


def test_the_majority_of_the_nearest_wins() -> None:
    bank, bank_labels = directions(0, 5, 10, 90), labels(1, 0, 0, 1)
    assert knn_paper(bank, bank_labels, directions(1), labels(0), k=3) == 100.0
    assert knn_paper(bank, bank_labels, directions(1), labels(1), k=1) == 100.0


def test_a_tie_goes_to_the_nearest() -> None:
    bank, bank_labels = directions(0, 20), labels(1, 0)
    assert knn_paper(bank, bank_labels, directions(2), labels(1), k=2) == 100.0
    assert knn_paper(bank, bank_labels, directions(18), labels(0), k=2) == 100.0


def test_length_matters_to_the_papers_distance_and_not_to_ours() -> None:
    bank = directions(0, 90) * np.array([[100.0], [0.01]], np.float32)
    assert knn_ours(bank, labels(0, 1), directions(60), labels(1), k=1) == 100.0
    assert knn_ours(bank, labels(0, 1), directions(30), labels(0), k=1) == 100.0
    assert knn_paper(bank, labels(0, 1), directions(30), labels(1), k=1) == 100.0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_papers_protocol_equals_a_plain_loop_over_l2_distances(offset: float) -> None:
    generator = np.random.default_rng(3)
    (bank, bank_labels), (queries, truth) = clouds(1, 300), clouds(2, 200)
    bank, queries = (one * generator.uniform(0.2, 3, (len(one), 1)).astype(np.float32) + np.float32(offset) for one in (bank, queries))
    right = 0
    for query, label in zip(queries, truth, strict=True):
        nearest = np.argsort(np.linalg.norm(bank.astype(np.float64) - query, axis=1))[:10]
        counts = np.bincount(bank_labels[nearest], minlength=4) + [  # a tie: the nearer in the sum of ranks
            0.01 * (10 - np.flatnonzero(bank_labels[nearest] == one)).sum() / 10 for one in range(4)
        ]
        right += int(counts.argmax() == label)
    found = knn(bank, bank_labels, queries, truth)
    assert found.paper == pytest.approx(100.0 * right / len(queries))
    assert found.paper != found.ours or not offset


def test_official_votes_are_weighted_by_similarity() -> None:
    """One neighbour at cosine 1 against two at cosine 0.87: exp(1/0.07) outweighs 2·exp(0.87/0.07)."""
    bank, bank_labels = directions(0, 30, -30), labels(1, 0, 0)
    assert knn_official(bank, bank_labels, directions(0), labels(1), ks=(3,)) == {3: 100.0}
    assert knn_official(bank, bank_labels, directions(0), labels(1), ks=(3,), temperature=100.0) == {3: 0.0}


def loop_official(bank: Floats, bank_labels: Labels, queries: Floats, truth: Labels, k: int) -> float:
    right = 0
    for query, label in zip(queries.astype(np.float64), truth, strict=True):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosine)[:k]
        votes = np.bincount(bank_labels[nearest], weights=np.exp(cosine[nearest] / 0.07), minlength=4)
        right += int(votes.argmax() == label)
    return 100.0 * right / len(queries)


@pytest.mark.parametrize("k", [10, 20])
def test_the_official_protocol_equals_a_plain_loop(k: int) -> None:
    (bank, bank_labels), (queries, truth) = clouds(1, 300), clouds(2, 700)
    assert knn_official(bank, bank_labels, queries, truth, ks=(k,))[k] == pytest.approx(loop_official(bank, bank_labels, queries, truth, k))


def test_ks_beyond_the_training_set_become_its_size_once_as_in_the_official_code() -> None:
    (bank, bank_labels), (queries, truth) = clouds(1, 50), clouds(2, 20)
    found = knn_official(bank, bank_labels, queries, truth)
    assert list(found) == [10, 20, 50]
    for k in found:
        assert found[k] == pytest.approx(loop_official(bank, bank_labels, queries, truth, k))
    assert list(knn_official(bank[:6], bank_labels[:6], queries, truth)) == [6]


def test_both_protocols_of_one_search_are_those_of_two_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, bank_labels), (queries, truth) = clouds(1, 300), clouds(2, 101)
    whole, heard = knn(bank, bank_labels, queries, truth), list[int]()
    assert whole.paper == knn_paper(bank, bank_labels, queries, truth)
    assert whole.official == knn_official(bank, bank_labels, queries, truth)
    monkeypatch.setattr("eupe_pipeline.student.probes.knn._CHUNK_SIMILARITIES", 300 * 40)
    assert knn(bank, bank_labels, queries, truth, on_done=heard.append) == whole
    assert heard == [40, 80, 101]


@pytest.mark.long
def test_full_cifar_10_takes_less_than_a_minute_for_each_feature() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 10, 60_000)
    features = (generator.normal(size=(10, 1280))[truth] * 0.1 + generator.normal(size=(60_000, 1280))).astype(np.float32)
    started = time.perf_counter()
    found = knn(features[:50_000], truth[:50_000], features[50_000:], truth[50_000:])
    assert time.perf_counter() - started < 60
    assert found.ours > 50


def test_fewer_training_images_than_k_all_vote_and_none_are_refused() -> None:
    assert knn_paper(directions(0, 1, 2), labels(0, 1, 1), directions(0), labels(1)) == 100.0
    with pytest.raises(BadInput, match="needs training images and test images, got 0 and 1"):
        knn_paper(directions(), labels(), directions(0), labels(0))


def test_images_without_a_label_are_refused() -> None:
    with pytest.raises(BadInput, match="label"):
        knn_paper(directions(0, 1), labels(0, -1), directions(0), labels(0), k=1)


def test_embedding_keeps_the_order_and_averages_patches() -> None:
    def model(pixels: torch.Tensor) -> Tokens:
        value = pixels[:, 0, 0, :].float()
        return Tokens(value, torch.stack([value, value + 2], dim=1)[:, None])

    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = embed(model, [images[:3], images[3:]])
    assert found.cls_ND is not None
    assert found.cls_ND[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.mean_patch_ND[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_nothing_to_embed_is_refused() -> None:
    with pytest.raises(BadInput, match="no image"):
        embed(lambda pixels: Tokens(None, pixels), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_no_figure(value: float) -> None:
    def model(pixels: torch.Tensor) -> Tokens:
        return Tokens(torch.full((len(pixels), 3), value), torch.ones(len(pixels), 1, 1, 3))

    with pytest.raises(BadInput, match="not finite"):
        embed(model, [np.zeros((2, 2, 2, 3), np.uint8)])
