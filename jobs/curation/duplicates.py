"""Near duplicates by the cosine of tokens: exact pairs above a threshold in bounded memory, and the groups that they join.

All pairs of 60,000 images are 1.8 billion dot products. Most are refused by a bound that a sixth of the channels gives: with P the
projection on the first principal directions of a sample, and r the length of what P leaves out, Cauchy and Schwarz say
x·y ≤ Px·Py + r(x)·r(y), which is one product of vectors with r as their last channel. Pairs that pass are computed in full, so the result
is that of all pairs. Price where nearly everything passes (a threshold below that of unrelated images): a sixth more than the plain way.
Groups are connected by single linkage: a chain of near duplicates is one group, whose ends may be less similar. Axes: N images, D channels,
P kept directions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .image_tokens import BLOCK, Float32s, Int64s, Tokens

_SHARE_OF_CHANNELS = 6
_SMALLEST_PROJECTION = 64
_SAMPLED_FOR_DIRECTIONS = 4096
_SAMPLED_NEIGHBOURS = 2048
_BOUND_SLACK, _EQUAL_SLACK = 1e-4, 1e-6  # rounding of fp32: of a bound, and of the cosine of a token with its copy
_GATHERED_PAIRS = 4096  # computed one by one; from here on a whole block is cheaper
_BELOW, _ABOVE = 0.90, 0.99  # of a threshold that is chosen here
_DEVIATIONS = 4


class Pairs(NamedTuple):
    """Positions of similar tokens on the left and on the right, and their cosine."""

    left_n: Int64s
    right_n: Int64s
    cosine_n: Float32s


def generator_of(seed: int, purpose: int) -> np.random.Generator:
    """Return random numbers of one purpose alone, so that a further step changes no other's."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose]))


class Bound:
    """The upper bound of cosines by a part of the channels; none for tokens that are short anyway."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        dim = tokens.values_ND.shape[1]
        kept = max(_SMALLEST_PROJECTION, dim // _SHARE_OF_CHANNELS)
        self.directions_DP: Float32s | None = None
        if kept < dim:
            sampled = generator_of(seed, 1).permutation(len(tokens))[:_SAMPLED_FOR_DIRECTIONS]
            units = tokens.unit(np.sort(sampled))
            _, vectors = np.linalg.eigh(units.T @ units)
            self.directions_DP = np.ascontiguousarray(vectors[:, -kept:].astype(np.float32))

    def project(self, tokens: Tokens) -> Float32s:
        """Return (N, P + 1): the vectors whose products are the bounds."""
        assert self.directions_DP is not None
        projected = np.empty((len(tokens), self.directions_DP.shape[1] + 1), np.float32)
        for start, units in tokens.blocks():
            here = projected[start : start + len(units)]
            np.matmul(units, self.directions_DP, out=here[:, :-1])
            left = 1 - np.einsum("np,np->n", here[:, :-1], here[:, :-1])
            here[:, -1] = np.sqrt(np.maximum(left, 0))
        return projected


def similar_pairs(
    left: Tokens,
    right: Tokens | None,
    threshold: float,
    seed: int,
    *,
    block: int = BLOCK,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Pairs]:  # fmt: skip
    """Yield all pairs with a cosine of `threshold` or more, in parts; without `right`, of `left` with itself, each pair once (i < j)."""
    bound = Bound(left, seed)
    if bound.directions_DP is None:
        of_left = of_right = None
    else:
        of_left = bound.project(left)
        of_right = of_left if right is None else bound.project(right)
    other = left if right is None else right
    for start in range(0, len(left), block):
        rows = slice(start, min(start + block, len(left)))
        units: Float32s | None = None
        for first in range(start if right is None else 0, len(other), block):
            columns = slice(first, min(first + block, len(other)))
            above = None
            if of_left is not None and of_right is not None:
                above = _above(of_left[rows] @ of_right[columns].T, threshold - _BOUND_SLACK)
            if above is None or len(above[0]) > _GATHERED_PAIRS:
                units = left.unit(rows) if units is None else units
                products = units @ other.unit(columns).T
                above = _above(products, threshold - _EQUAL_SLACK)
                cosines = products[above]
            else:
                cosines = np.einsum("nd,nd->n", left.unit(above[0] + start), other.unit(above[1] + first))
            pairs = Pairs(above[0] + start, above[1] + first, cosines)
            wanted = cosines >= threshold - _EQUAL_SLACK
            wanted &= True if right is not None else pairs.left_n < pairs.right_n
            if wanted.any():
                yield Pairs(pairs.left_n[wanted], pairs.right_n[wanted], cosines[wanted])
        on_progress(rows.stop)


def _above(values: Float32s, least: float) -> tuple[Int64s, Int64s]:
    """Return rows and columns of a block's values from `least`; rows without any, nearly all, are read once."""
    rows = np.flatnonzero(values.max(axis=1) >= least)
    inner, columns = np.nonzero(values[rows] >= least)
    return rows[inner], columns


class Groups:
    """The connected components of N tokens; the smallest number of a group is its name."""

    def __init__(self, count: int) -> None:
        self.first_N: Int64s = np.arange(count, dtype=np.int64)

    def join(self, left_n: Int64s, right_n: Int64s) -> None:
        """Connect pairs."""
        first = self.first_N
        while True:
            ends = np.stack([first[left_n], first[right_n]])
            ends = ends[:, ends[0] != ends[1]]
            if not ends.size:
                return
            np.minimum.at(first, ends.max(axis=0), ends.min(axis=0))
            while (nearer := first[first] != first).any():
                first[nearer] = first[first[nearer]]

    def members(self) -> list[Int64s]:
        """Return the groups of two and more, the largest first, members ascending."""
        order = np.argsort(self.first_N, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.first_N[order])) + 1)
        return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), int(group[0])))


def duplicate_groups(
    tokens: Tokens, threshold: float, seed: int, *, block: int = BLOCK, on_progress: Callable[[int], None] = lambda done: None
) -> Groups:
    """Return the groups of near duplicates among some tokens."""
    groups = Groups(len(tokens))
    for pairs in similar_pairs(tokens, None, threshold, seed, block=block, on_progress=on_progress):
        groups.join(pairs.left_n, pairs.right_n)
    return groups


def nearest_of_a_sample(tokens: Tokens, seed: int) -> Float32s:
    """Return the cosine of each of at most 2,048 sampled tokens with its nearest neighbour among all; empty for one token."""
    if len(tokens) < 2:
        return np.empty(0, np.float32)
    sampled = np.sort(generator_of(seed, 2).permutation(len(tokens))[:_SAMPLED_NEIGHBOURS])
    units, nearest = tokens.unit(sampled), np.full(len(sampled), -1, np.float32)
    for start, others in tokens.blocks():
        cosines = units @ others.T
        own = np.flatnonzero((sampled >= start) & (sampled < start + len(others)))
        cosines[own, sampled[own] - start] = -1
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
    return np.clip(nearest, -1, 1)


def chosen_threshold(nearest_n: Float32s) -> tuple[float, str]:
    """Return a threshold from the cosines of nearest neighbours, and why (ours).

    Their Fisher transforms (atanh) are close to normal; the threshold lies four robust deviations above the median. It is never below 0.90,
    which different images of one kind reach with most teachers, nor above 0.99, which recompressed copies do not reach.
    """
    if not len(nearest_n):
        return _ABOVE, "auto: one image has no neighbour"
    stretched = np.arctanh(np.clip(nearest_n.astype(np.float64), -0.999999, 0.999999))
    median = float(np.median(stretched))
    deviation = 1.4826 * float(np.median(np.abs(stretched - median)))
    unclipped = float(np.tanh(median + _DEVIATIONS * deviation))
    value = round(min(max(unclipped, _BELOW), _ABOVE), 4)
    text = f"auto: median similarity of nearest neighbours {np.tanh(median):.3f}, and {_DEVIATIONS} deviations above it {unclipped:.3f}"
    return value, text if value == round(unclipped, 4) else f"{text}, kept between {_BELOW:.2f} and {_ABOVE:.2f}"


def histogram(nearest_n: Float32s) -> dict[str, int]:
    """Return the number of nearest neighbours by range of cosine, in steps that are finer where duplicates are."""
    edges = np.array([-1, 0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0 + 1e-6])
    counts, _ = np.histogram(nearest_n, edges)
    return {f"{low:g} to {min(high, 1):.4g}": int(n) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)}


def best_match(pairs: Iterator[Pairs], count: int) -> tuple[Int64s, Float32s]:
    """Return for each of `count` tokens on the left the most similar one on the right (−1: none is similar), and its cosine."""
    match, best = np.full(count, -1, np.int64), np.full(count, -np.inf, np.float32)
    for left, right, cosine in pairs:
        order = np.lexsort((right, -cosine, left))
        chosen = order[np.unique(left[order], return_index=True)[1]]
        better = chosen[cosine[chosen] > best[left[chosen]]]
        match[left[better]], best[left[better]] = right[better], cosine[better]
    return match, best


def duplicated(groups: Groups, banned_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which tokens leave as duplicates (N,): of each group all but the first that is not banned."""
    allowed = np.flatnonzero(~banned_N)
    _, firsts = np.unique(groups.first_N[allowed], return_index=True)
    leaves = ~banned_N
    leaves[allowed[firsts]] = False
    return leaves
