"""A balanced subset by hierarchical k-means, after "Automatic Data Curation for Self-Supervised Learning" (Vo et al., arXiv 2405.15613).

k-means of all images makes k clusters, k-means of their centroids a tenth as many, and so on: centroids of centroids lie ever more evenly
over the space, whatever there is most of in the data. The images are then drawn from the top down: each cluster of a level gets an equal
number, or all that it has. The rule for k is ours: 2·√n clusters of n images, then a tenth of the level below, as long as there are two.
So are ten iterations from random images (theirs: k-means++ and resampling, at 743 million images) and clusters by cosine: by distance, a
centroid near the middle takes nearly everything from the second level on. Axes: N points, K clusters, D channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .duplicates import generator_of
from .image_tokens import Float32s, Int64s, Tokens

_ITERATIONS = 10
_FEWER = 10  # clusters of a level for one of the next


def levels_of(count: int) -> list[int]:
    """Return the number of clusters of each level, the finest first."""
    clusters = [max(1, min(count, round(2 * math.sqrt(count))))]
    while clusters[-1] // _FEWER >= 2:
        clusters.append(clusters[-1] // _FEWER)
    return clusters


@dataclass(frozen=True)
class Hierarchy:
    """Each image's cluster of every level, the finest first."""

    clusters: Sequence[int]
    label_LN: Sequence[Int64s]


def hierarchy(tokens: Tokens, seed: int, on_progress: Callable[[int], None] = lambda done: None) -> Hierarchy:
    """Return the clusters of some tokens, level by level."""
    clusters, labels = levels_of(len(tokens)), list[Int64s]()
    points = tokens
    for level, count in enumerate(clusters):
        own, centroids = k_means(points, count, generator_of(seed, 10 + level))
        labels.append(own if not labels else own[labels[-1]])
        points = Tokens.of(centroids)
        on_progress(level + 1)
    return Hierarchy(clusters, labels)


def k_means(points: Tokens, count: int, random: np.random.Generator) -> tuple[Int64s, Float32s]:
    """Return each point's cluster (N,) and the unit centroids (K, D), by cosine.

    A cluster that lost all its points gets the point with the lowest cosine to its own centroid.
    """
    centroids = points.unit(np.sort(random.permutation(len(points))[:count]))
    labels, before = np.full(len(points), -1, np.int64), np.empty(0, np.int64)
    cosines, sums = np.empty(len(points), np.float32), np.empty_like(centroids)
    for _ in range(_ITERATIONS):
        sums[:], before = 0, labels.copy()
        for start, units in points.blocks():
            scores, here = units @ centroids.T, slice(start, start + len(units))
            labels[here] = own = scores.argmax(axis=1)
            cosines[here] = scores[np.arange(len(units)), own]
            order = np.argsort(own, kind="stable")
            present, first = np.unique(own[order], return_index=True)
            sums[present] += np.add.reduceat(units[order], first, axis=0)
        _fill_empty(points, labels, cosines, sums)
        centroids = Tokens.of(sums).unit(slice(None))
        if np.array_equal(labels, before):
            break
    return labels, centroids


def _fill_empty(points: Tokens, labels: Int64s, cosines: Float32s, sums: Float32s) -> None:
    """Move the points with the lowest cosines, of clusters that have more than one, to clusters that have none."""
    sizes = np.bincount(labels, minlength=len(sums))
    empty = np.flatnonzero(sizes == 0).tolist()
    for point in np.argsort(cosines, kind="stable").tolist() if empty else []:
        if sizes[labels[point]] > 1:
            unit, cluster = points.unit(np.array([point]))[0], empty.pop()
            sums[labels[point]] -= unit
            sizes[labels[point]] -= 1
            sums[cluster], labels[point] = unit, cluster
        if not empty:
            break


def even_shares(sizes: NDArray[np.int64], wanted: int, random: np.random.Generator) -> Int64s:
    """Return how many to take of each size so that they sum to `wanted` and are as equal as can be; the remainder is drawn at random."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the largest level that asks for no more than is wanted
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(np.minimum(sizes, middle).sum()) <= wanted else (low, middle - 1)
    shares = np.minimum(sizes, low)
    more = random.permutation(np.flatnonzero(sizes > low))[: wanted - int(shares.sum())]
    shares[more] += 1
    return shares


def balanced(tree: Hierarchy, wanted: int, seed: int) -> NDArray[np.bool_]:
    """Return which images stay (N,): `wanted` of them, evenly over the coarsest clusters, then within each over its finer ones."""
    random = generator_of(seed, 3)
    stays = np.zeros(len(tree.label_LN[0]), np.bool_)

    def draw(inside: Int64s, wanted: int, level: int) -> None:
        if level < 0 or wanted == len(inside):
            stays[inside[random.permutation(len(inside))[:wanted]]] = True
            return
        order = inside[np.argsort(tree.label_LN[level][inside], kind="stable")]
        parts = np.split(order, np.flatnonzero(np.diff(tree.label_LN[level][order])) + 1)
        shares = even_shares(np.array([len(part) for part in parts]), wanted, random)
        for part, share in zip(parts, shares.tolist(), strict=True):
            if share:
                draw(part, share, level - 1)

    draw(np.arange(len(stays), dtype=np.int64), wanted, len(tree.clusters) - 1)
    return stays


def evenness(label_N: Int64s, clusters: int) -> float:
    """Return the entropy of the clusters' sizes over that of equal ones: 1 where all are equal."""
    if clusters < 2:
        return 1.0
    shares = np.bincount(label_N, minlength=clusters) / len(label_N)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(clusters))
