"""How far an int8 student is from the trained one: its tokens and its heads' predictions on pictures that its ranges were not measured on.

Of tokens a cosine, because kNN, linear heads and similarity maps see directions, and because int8 moves every value by up to half a step,
so that the largest difference says little. Of heads the difference by scale (root mean square over root mean square), of those that
classify also the share of pictures or patches that get the same class: on these, no accuracy can differ by more than the rest. The limits
refuse a broken student (a range that was never seen, weights that one scale cannot hold), not one that loses half a point in kNN: `make
bench-quantised` measures that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...storage.core.errors import BadInput
from ...teachers.encoders.preprocessing import Preprocessing

LEAST_COSINE = 0.95
"""Of class tokens, and of patch tokens, on average over the pictures."""
LARGEST_DIFFERENCE = 0.3
"""Of each head's predictions, by scale: what a cosine of 0.95 is between vectors of one length."""
_TOKENS = ("cls", "patch")
_INSTEAD = (
    "Measure on other pictures (--calibrate, --calibration-views), train the run's last steps with --set quantise.steps=N, or export with "
    "--precision fp16"
)
Outputs = Callable[[Tensor], Sequence[Tensor]]
"""Pixels → class tokens, patch tokens, and what each head gives."""


def in_batches(preprocessing: Preprocessing, pixels_BHWC: Tensor, batch: int) -> Iterator[Tensor]:
    """Yield normalised pixels (batch, 3, h, w); the first pictures fill up the last batch."""
    for start in range(0, len(pixels_BHWC), batch):
        part = pixels_BHWC[start : start + batch]
        while len(part) < batch:
            part = torch.cat([part, pixels_BHWC[: batch - len(part)]])
        yield preprocessing.apply(part).contiguous()


def compare_int8(
    trained: Outputs, int8: Outputs, batches: Iterable[Tensor], heads: Mapping[str, bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (mean cosines of class and patch tokens, how each head's predictions differ), with their limits; raise `BadInput` beyond.

    `heads` says of each output behind the tokens whether it is logits (B, K, …).
    """
    tokens: dict[str, list[Tensor]] = {name: [] for name in _TOKENS}
    predicted = {name: _Predicted(classes) for name, classes in heads.items()}
    for pixels_BCHW in batches:
        pairs = zip((*tokens, *predicted), int8(pixels_BCHW), trained(pixels_BCHW), strict=True)
        for name, computed, wanted in pairs:
            if computed.shape != wanted.shape:
                raise BadInput(f"the int8 graph gives {name} of {tuple(computed.shape)}, the student of {tuple(wanted.shape)}")
            if name in tokens:
                tokens[name].append(cosine_similarity(computed.flatten(0, -2), wanted.flatten(0, -2), dim=-1).flatten())
            else:
                predicted[name].add(computed, wanted)
    cosines = {name: torch.cat(each).nan_to_num(-1.0).mean().item() for name, each in tokens.items()}
    if not min(cosines.values()) >= LEAST_COSINE:
        figures = ", ".join(f"{name} {cosine:.3f}" for name, cosine in cosines.items())
        raise BadInput(
            f"the int8 student's tokens turn too far from the trained one's: cosines {figures}, at least {LEAST_COSINE:g} is asked for. "
            f"{_INSTEAD}"
        )
    facts: dict[str, Any] = {"cosine of the tokens": cosines, "least cosine allowed": LEAST_COSINE}
    return facts, {name: one.facts(name) for name, one in predicted.items()}


class _Predicted:
    """What a head predicts from int8 tokens, beside what it does from the trained ones."""

    def __init__(self, classes: bool) -> None:
        self.same: list[Tensor] | None = [] if classes else None
        self.off = self.size = 0.0

    def add(self, computed: Tensor, wanted: Tensor) -> None:
        """Take in a batch."""
        if self.same is not None:
            self.same.append((computed.argmax(1) == wanted.argmax(1)).flatten())
        self.off += (computed - wanted).double().square().sum().item()
        self.size += wanted.double().square().sum().item()

    def facts(self, name: str) -> dict[str, float]:
        """Return the figures; raise `BadInput` beyond the limit, which a value that is no number always is."""
        difference = (self.off / self.size) ** 0.5 if self.size else float("inf")
        if not difference <= LARGEST_DIFFERENCE:
            raise BadInput(
                f"the head {name} predicts otherwise from the int8 student's tokens: its outputs differ by {difference:.2g} of their root "
                f"mean square, at most {LARGEST_DIFFERENCE:g} is allowed. {_INSTEAD}"
            )
        same = {} if self.same is None else {"same class": torch.cat(self.same).double().mean().item()}
        return {**same, "difference by scale": difference, "limit of the difference": LARGEST_DIFFERENCE}
