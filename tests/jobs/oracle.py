"""A model whose patch tokens are known: the mean colour of each patch, as one-hot classes, or as it is."""

from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.jobs.evaluation.models import Model
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor, nn
from torch.nn import functional

STRIDE_PX = 8
PREPROCESSING = Preprocessing(64, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class ColourEncoder(Encoder):
    """Mean colour of each patch through fixed random features: what is linear in colour is linear in the tokens."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 1), {"name": "oracle"}, width=12, stride_px=STRIDE_PX, cls="none", prep=PREPROCESSING)
        self.mixing = nn.Parameter(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        colour = functional.avg_pool2d(pixels_BCHW, STRIDE_PX).permute(0, 2, 3, 1)
        return Tokens(None, colour @ self.mixing)


class PlaceEncoder(Encoder):
    """The colour of each patch at unit length, sharply: neighbours differ, equal places of two pictures agree."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 1), {"name": "places"}, width=3, stride_px=STRIDE_PX, cls="none", prep=PREPROCESSING)

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        return Tokens(None, functional.avg_pool2d(pixels_BCHW, STRIDE_PX).permute(0, 2, 3, 1))


def oracle_model(folder: Path, encoder: Encoder) -> Model:
    """The encoder as a model whose results go to `folder`."""
    architecture: dict[str, Any] = encoder.architecture
    spec = TeacherSpec("oracle", architecture, folder / "none", "0" * 64, PREPROCESSING, "none", None, encoder.width, (8, 8))
    return Model("oracle", spec, folder, lambda device: Teacher(spec, encoder.to(device)))
