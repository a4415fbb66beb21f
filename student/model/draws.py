"""Recorded draws: random choices of a training step as pure functions of (seed, purpose, step).

No generator has a state that a checkpoint would have to carry: the same step draws the same values after a resume, on any number of ranks
and in any order of evaluation. Each draw is 64 bits of BLAKE2b over its arguments; the modulo's bias is below 2^-50 for the small ranges
used here.
"""

import hashlib
from collections.abc import Sequence
from statistics import NormalDist

from ...storage.views.input_size import SizePx

_MASK_63 = 2**63 - 1


def bits64(seed: int, purpose: str, *numbers: int) -> int:
    """Return 64 uniform bits that depend on the arguments alone."""
    message = "\0".join([str(seed), purpose, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=8).digest(), "little")


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of torch's generators for one step: what the model draws (RoPE rescale) is then exact after a resume."""
    return bits64(seed, "step", step, rank) & _MASK_63


def choose_size(seed: int, purpose: str, step: int, sizes_px: Sequence[SizePx]) -> SizePx:
    """Draw one of `sizes_px` for a step, uniformly; student and teacher draw independently through their `purpose`."""
    return sizes_px[bits64(seed, f"size:{purpose}", step) % len(sizes_px)]


def draw_shift(seed: int, step: int, axis: int, deviation: float, unit: int, most: int) -> int:
    """Draw how many tokens a step's window is shifted along an axis: a rounded normal number of units, in [−most, most]."""
    uniform = ((bits64(seed, f"shift:{axis}", step) >> 12) + 0.5) / 2**52  # exact, and never 0 or 1
    units = round(NormalDist().inv_cdf(uniform) * deviation)
    return max(-(most // unit), min(most // unit, units)) * unit


def dropped_teachers(seed: int, step: int, names: Sequence[str], probability: float) -> frozenset[str]:
    """Draw the teachers whose losses are dropped in a step, each with a probability; the one with the highest draw always stays."""
    drawn = {name: bits64(seed, f"drop:{name}", step) / 2**64 for name in names}
    luckiest = max(drawn, key=lambda name: drawn[name])
    return frozenset(name for name, value in drawn.items() if value < probability and name != luckiest)
