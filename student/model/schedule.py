"""The learning rate of each step: linear warm-up, then half a cosine down to the final rate.

A pure function of the step, so that a resumed run needs no scheduler state. The paper names the cosine and the base rates; the warm-up
(5 % of the run) and the final rate (0) are ours.
"""

import math

from .recipe import OptimizerConfig


def warmup_steps(steps: int, warmup_share: float) -> int:
    """Return how many of `steps` have a rising rate."""
    return round(steps * warmup_share)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the rate of step `step` in [0, steps).

    The peak is reached at the last warm-up step, the final rate one step after the run's end. Raises ValueError outside the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is outside the run of {steps} steps")
    warmup = warmup_steps(steps, config.warmup_share)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))
