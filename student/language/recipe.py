"""How a language model learns to see patch tokens: frozen typed values, checked where they are made; the files are in pipeline/recipes.

Two stages, as LLaVA-1.5: `pretrain` trains the projector alone on captions, `instruct` projector and language model on conversations.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ...storage.core.choices import PRECISIONS, SQUARE_VIEWS, Precision, SquareView
from ...storage.core.errors import BadInput, unknown_name


@dataclass(frozen=True)
class EncoderInput:
    """The square that the encoder sees, by the size of its patches."""

    size_px: int
    """For patches of any other size; made a multiple of them."""
    size_px_of_patch_14: int

    def for_patch(self, patch_px: int) -> int:
        """Return the side for patches of a size."""
        return self.size_px_of_patch_14 if patch_px == 14 else max(1, round(self.size_px / patch_px)) * patch_px


@dataclass(frozen=True)
class PromptFormat:
    """The words around questions and answers: `SYSTEM USER: question ASSISTANT: answer</s>`."""

    system: str
    user: str
    assistant: str


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training; raises BadInput on values that cannot be."""

    epochs: float
    batch_size: int
    learning_rate: float
    warmup_share: float
    """Of the steps, over which the rate rises from 0 in a line; it then falls to 0 in half a cosine."""
    weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float
    view: SquareView
    """center: the centre of the picture; letterbox: the whole picture, padded with the encoder's mean colour on both sides."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.learning_rate <= 0 or self.clip_norm <= 0:
            raise BadInput("a stage needs epochs, batch_size, learning_rate and clip_norm above 0")
        if (
            not 0 <= self.warmup_share < 1
            or self.weight_decay < 0
            or not 0 <= min(self.beta1, self.beta2) <= max(self.beta1, self.beta2) < 1
        ):
            raise BadInput("a stage needs warmup_share, beta1 and beta2 in [0, 1) and weight_decay of 0 or more")
        if self.view not in SQUARE_VIEWS:
            raise unknown_name("view", self.view, SQUARE_VIEWS)

    def steps(self, entries: int) -> int:
        """Return the steps over so many entries; the last batch is filled up from the next epoch."""
        return max(1, -int(-entries * self.epochs // self.batch_size))


@dataclass(frozen=True)
class VlmRecipe:
    """Both stages, and how answers are made."""

    encoder: EncoderInput
    prompt: PromptFormat
    pretrain: StageRecipe
    instruct: StageRecipe
    projector_layers: int
    """Linear layers with GELU between them; the first goes to the language model's width."""
    longest: int
    """Tokens of a conversation, those of the picture included; the rest is cut off."""
    answer_tokens: int
    """Of an answer, at most; greedy."""
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        if self.projector_layers < 1 or self.answer_tokens < 1 or self.longest < 2:
            raise BadInput("projector_layers, answer_tokens and longest must be whole numbers above 0")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)

    def to_dict(self) -> dict[str, Any]:
        """Return every value, nested, JSON-able."""
        return asdict(self)
