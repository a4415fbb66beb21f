"""Each teacher's own space of class tokens, for the balanced angle: what undoes its normalisation, and how far its tokens spread.

The spread is measured on stored class tokens, at most 4,096 of 64 shards of each dataset at even distances, so that it is a function of
the feature sets alone: every rank and every resumed run find the same. In a mixture each dataset counts by its share of the batches.
Normalised tokens would not do: their mean is taken away, so that all teachers' lie at about a right angle to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ...storage.features.features import FeatureReader
from ...storage.features.phis import inverse
from ...storage.features.statistics import Statistics
from ..model.losses import ClassSpace, angular_dispersion

MOST_TOKENS, _MOST_SHARDS = 4096, 64
_LEAST_DISPERSION = 1e-8  # rad²: a cone of a hundredth of a degree, which no teacher of pictures has


def class_spaces(parts: Sequence[tuple[float, Mapping[str, FeatureReader]]]) -> dict[str, ClassSpace]:
    """Return the space of each teacher that has class tokens, from (share, feature sets by teacher) of each dataset.

    Raises `BadInput` where none has, and for a teacher whose class tokens all have one direction.
    """
    readers = parts[0][1]
    with_cls = [name for name, reader in readers.items() if reader.cls_dim is not None]
    if not with_cls:
        raise BadInput(f"loss.cls = 'angle' balances class tokens, and no teacher has one: {', '.join(readers)}; leave it at 'cosine'")
    return {name: _space(name, [(share, by_name[name]) for share, by_name in parts]) for name in with_cls}


def _space(name: str, sets: Sequence[tuple[float, FeatureReader]]) -> ClassSpace:
    sampled = [(share, reader.statistics.denormalize_cls(_sample(reader))) for share, reader in sets]
    weights = np.concatenate([np.full(len(tokens), share / max(1, len(tokens))) for share, tokens in sampled])
    tokens_nD = np.concatenate([tokens for _, tokens in sampled])
    dispersion = angular_dispersion(torch.from_numpy(tokens_nD), torch.from_numpy(weights)) if len(tokens_nD) else 0.0
    if not dispersion > _LEAST_DISPERSION:
        raise BadInput(
            f"loss.cls = 'angle' divides by the spread of a teacher's class tokens, and those of {name} all have one direction "
            f"(mean squared angle {dispersion:g}, of {len(tokens_nD):,}); leave loss.cls at 'cosine'"
        )
    mean_D, scale = _restoring(sets[0][1].statistics)
    return ClassSpace(torch.from_numpy(mean_D), torch.from_numpy(scale), dispersion)


def _sample(reader: FeatureReader) -> NDArray[np.float32]:
    """Return class tokens (n, D) of rows at even distances, of a few shards at even distances: each is a request to a remote store."""
    shards = _evenly(np.arange(reader.shards), _MOST_SHARDS)
    rows = np.concatenate([np.arange(*reader.group.shard_span(shard)) for shard in shards.tolist()])
    chosen = _evenly(np.setdiff1d(rows, reader.failed_rows()), MOST_TOKENS)
    return reader.read_cls(chosen).astype(np.float32)


def _evenly(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of some numbers, in order."""
    places = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(np.int64))
    return numbers[places]


def _restoring(statistics: Statistics) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean (D,) and scale, (D,) or (D, D), that lead normalised class tokens back."""
    assert statistics.cls_mean is not None
    assert statistics.cls_std is not None
    return statistics.cls_mean, statistics.cls_std if statistics.cls_matrix is None else inverse(statistics.cls_matrix)
