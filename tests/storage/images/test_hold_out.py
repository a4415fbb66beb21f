"""Which images are held out follows from their ids alone, is nested by share, and a sample is those of the lowest ranks."""

import hashlib

import numpy as np
import pytest
from eupe_pipeline.storage.images.hold_out import held_out_images, hold_out_ranks, lowest_ranked, share_of_rank
from hypothesis import given
from hypothesis import strategies as st

NONE = np.empty(0, np.int64)


class Ids:
    """A dataset of nothing but ids."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, start: int, stop: int) -> list[str]:
        return self._ids[start:stop]


MANY = Ids([f"class{n % 7}/{n:06d}.jpg" for n in range(70_000)])  # more than are read at once


def test_a_rank_is_the_documented_hash() -> None:
    rank = hashlib.blake2b("é/1.png".encode(), digest_size=8, key=b"eupe hold-out 1").digest()
    assert hold_out_ranks(["é/1.png"]).tolist() == [int.from_bytes(rank, "big")]


def test_a_share_holds_out_about_its_part_and_zero_nothing() -> None:
    assert len(held_out_images(MANY, 0.0)) == 0
    for share in (0.001, 0.01, 0.5):
        expected, deviation = share * 70_000, (70_000 * share * (1 - share)) ** 0.5
        assert abs(len(held_out_images(MANY, share)) - expected) < 4 * deviation


@given(st.lists(st.text(max_size=8), unique=True, max_size=40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_larger_share_holds_out_the_same_images_and_more(ids: list[str], one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert set(held_out_images(Ids(ids), low)) <= set(held_out_images(Ids(ids), high))


@given(st.permutations([f"{n}.png" for n in range(60)]), st.integers(1, 60))
def test_neither_the_order_of_images_nor_the_others_change_the_choice(ids: list[str], count: int) -> None:
    whole, part = Ids(ids), Ids(ids[:count])
    held = {ids[image] for image in held_out_images(whole, 0.3)}
    assert {ids[image] for image in held_out_images(part, 0.3)} == held & set(ids[:count])


@pytest.mark.parametrize("held_out", [True, False])
def test_a_sample_is_of_the_lowest_ranks_on_its_side_without_what_is_left_out(held_out: bool) -> None:
    without = np.arange(0, 70_000, 3, dtype=np.int64)
    found = lowest_ranked(MANY, 50, 0.2, held_out=held_out, without=without)
    ranks = hold_out_ranks(MANY.ids(0, 70_000))
    held = np.isin(np.arange(70_000), held_out_images(MANY, 0.2))
    candidates = np.setdiff1d(np.flatnonzero(held == held_out), without)
    expected = candidates[np.argsort(ranks[candidates], kind="stable")[:50]]
    assert found.image_N.tolist() == expected.tolist()
    assert found.rank_N.tolist() == ranks[expected].tolist()


def test_a_sample_of_fewer_images_than_wanted_is_all_of_them() -> None:
    few = Ids(["a", "b", "c"])
    assert sorted(lowest_ranked(few, 9, 0.0, held_out=False, without=NONE).image_N) == [0, 1, 2]
    assert len(lowest_ranked(few, 9, 0.0, held_out=True, without=NONE).image_N) == 0


def test_the_share_of_a_rank_is_the_border_of_its_image() -> None:
    share = share_of_rank(int(hold_out_ranks(["a"])[0]))
    assert len(held_out_images(Ids(["a"]), share * (1 - 1e-12))) == 0
    assert len(held_out_images(Ids(["a"]), share * (1 + 1e-12))) == 1
