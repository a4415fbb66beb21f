"""Choose the images that no training draws, to measure a student on: by their ids alone.

An image has a rank, 64 bits of BLAKE2b over its id under a fixed key; with a share s those with a rank below s · 2^64 are held out. So they
are the same whatever else decides a run (views, teachers, mixture, subset, stage, seed), they stay the same when a dataset grows, and a
larger share holds out these and further ones. Samples are the images with the lowest ranks, on either side of the border.
Price: about 1 µs an image, and memory for what is held out. Limits: a share is kept on average only, 1 % of 500 images may be 2 or 8 of
them; a copy of an image under another id may fall on the other side (`features curate` finds copies).
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .dataset import ImageDataset
from .subsets import ImageSubset

RULE = "BLAKE2b of the id, 64 bits, key 'eupe hold-out 1'"
"""What a run records, so that no other rule ever passes for this one."""
_KEY = b"eupe hold-out 1"
_BITS = 64
_AT_ONCE = 65_536

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]


class Identified(Protocol):
    """Images with ids: a dataset."""

    def __len__(self) -> int: ...

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of the images [start, stop)."""


class Ranked(NamedTuple):
    """Some images of a dataset by rising rank."""

    rank_N: UInt64s
    image_N: Int64s


def hold_out_ranks(ids: Sequence[str]) -> UInt64s:
    """Return the rank (N,) of each id."""
    digests = b"".join(hashlib.blake2b(image_id.encode(), digest_size=_BITS // 8, key=_KEY).digest() for image_id in ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


@lru_cache(maxsize=8)  # a run asks several times, and each takes a walk through all ids
def held_out_images(dataset: Identified, share: float) -> Int64s:
    """Return the numbers of the images that a share in [0, 1) holds out, ascending and read-only; none for 0."""
    selected = [np.empty(0, np.int64)]
    for start in range(0, len(dataset) if share else 0, _AT_ONCE):
        ranks = hold_out_ranks(dataset.ids(start, min(start + _AT_ONCE, len(dataset))))
        selected.append(start + np.flatnonzero(ranks < _border(share)))
    images = np.concatenate(selected)
    images.setflags(write=False)
    return images


def drawn_images(dataset: ImageDataset, subset: ImageSubset | None, share: float) -> Int64s | None:
    """Return the images that a run may draw of a dataset, ascending, removed ones not and failed ones among them; None for all."""
    if not share and subset is None:
        return None
    stays = np.arange(len(dataset), dtype=np.int64) if subset is None else subset.stays()
    return np.setdiff1d(stays, np.union1d(dataset.removed(), held_out_images(dataset, share)))


def lowest_ranked(dataset: Identified, count: int, share: float, *, held_out: bool, without: Int64s) -> Ranked:
    """Return the `count` images of the lowest ranks among those that are held out, or among those that are not.

    Images in `without` (sorted, unique) are passed over; fewer come when there are fewer.
    """
    best = Ranked(np.empty(0, np.uint64), np.empty(0, np.int64))
    for start in range(0, len(dataset), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(dataset))
        ranks = hold_out_ranks(dataset.ids(start, stop))
        chosen = (ranks < _border(share)) == held_out
        chosen[without[np.searchsorted(without, start) : np.searchsorted(without, stop)] - start] = False
        here = np.flatnonzero(chosen)
        best = lowest(Ranked(np.concatenate([best.rank_N, ranks[here]]), np.concatenate([best.image_N, start + here])), count)
    return best


def lowest(ranked: Ranked, count: int) -> Ranked:
    """Return the `count` images of the lowest ranks, by rising rank; the lower number first among equals."""
    order = np.lexsort((ranked.image_N, ranked.rank_N))[:count]
    return Ranked(ranked.rank_N[order], ranked.image_N[order])


def share_of_rank(rank: int) -> float:
    """Return the share that ends at a rank: the least one that could hold out its image."""
    return float(rank / 2**_BITS)


def _border(share: float) -> np.uint64:
    return np.uint64(int(share * 2**_BITS))
