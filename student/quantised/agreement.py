"""How far an int8 student is from the trained one: the cosines of its tokens on pictures that its ranges were not measured on.

A cosine, because kNN, linear heads and similarity maps see directions, and because int8 moves every value by up to half a step, so that the
largest difference says little. The limit refuses a broken student (a range that was never seen, weights that one scale cannot hold), not
one that loses half a point in kNN: `make bench-quantised` measures that.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...storage.core.errors import BadInput
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.encoders.tokens import Tokens

LEAST_COSINE = 0.95
"""Of class tokens, and of patch tokens, on average over the pictures."""


def in_batches(preprocessing: Preprocessing, pixels_BHWC: Tensor, batch: int) -> Iterator[Tensor]:
    """Yield normalised pixels (batch, 3, h, w); the first pictures fill up the last batch."""
    for start in range(0, len(pixels_BHWC), batch):
        part = pixels_BHWC[start : start + batch]
        while len(part) < batch:
            part = torch.cat([part, pixels_BHWC[: batch - len(part)]])
        yield preprocessing.apply(part).contiguous()


def compare_int8(trained: Callable[[Tensor], Tokens], int8: Callable[[Tensor], Tokens], batches: Iterable[Tensor]) -> dict[str, Any]:
    """Return the mean cosines of class and patch tokens, and the limit; raises `BadInput` below it."""
    found: dict[str, list[Tensor]] = {"cls": [], "patch": []}
    for pixels_BCHW in batches:
        for name, computed, wanted in zip(found, int8(pixels_BCHW), trained(pixels_BCHW), strict=True):
            assert computed is not None
            assert wanted is not None
            if computed.shape != wanted.shape:
                raise BadInput(f"the int8 graph gives {name} tokens of {tuple(computed.shape)}, the student of {tuple(wanted.shape)}")
            found[name].append(cosine_similarity(computed.flatten(0, -2), wanted.flatten(0, -2), dim=-1).flatten())
    cosines = {name: torch.cat(each).nan_to_num(-1.0).mean().item() for name, each in found.items()}
    if not min(cosines.values()) >= LEAST_COSINE:
        figures = ", ".join(f"{name} {cosine:.3f}" for name, cosine in cosines.items())
        raise BadInput(
            f"the int8 student's tokens turn too far from the trained one's: cosines {figures}, at least {LEAST_COSINE:g} is asked for. "
            "Measure on other pictures (--calibrate, --calibration-views), train the run's last steps with --set quantise.steps=N, or "
            "export with --precision fp16"
        )
    return {"cosine of the tokens": cosines, "least cosine allowed": LEAST_COSINE}
