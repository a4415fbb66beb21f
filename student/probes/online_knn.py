"""kNN of students while they train: an encoder's copy over a few images that stay in memory, between two steps.

Nothing of it can reach the training: the weights are copied into an encoder of its own (so that gradients, modes, compiled graphs, DDP and
FSDP stay untouched), torch's generators are seeded anew before each step anyway and are put back here, and the images were decoded once,
before the first step, so that the stream's threads go on filling their batches meanwhile. With several ranks all take part in gathering the
weights and the first one computes. Price: a second encoder on the device while it lasts, and the time, which is said and is left out of the
training's rate. Axes: N images.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...teachers.encoders.build import build_encoder
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.tokens import Tokens
from ...teachers.runtime.devices import autocast
from ..model.ranks import ALONE, Ranks
from ..model.sharding import full_tensor
from ..model.student import Student
from .knn import embed, knn

_BATCH = 64


class HeldOut(NamedTuple):
    """A labelled set in memory: uint8 pixels (N, side, side, 3) and labels (N,), the first `bank` of them the neighbours."""

    pixels_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    bank: int


def evaluate_student(student: Student, held_out: HeldOut, *, device: str, precision: str, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Return percentages by feature and protocol, and the seconds that it took; {} on ranks that are not the first.

    Collective: every rank calls this.
    """
    started = time.perf_counter()
    state = {name: full_tensor(tensor.detach()) for name, tensor in student.encoder.state_dict().items()}
    if not ranks.first:
        return {}
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        figures = _knn(_frozen_copy(student.encoder, state, device), held_out, device, precision)
    return {**figures, "seconds": time.perf_counter() - started}


def _frozen_copy(encoder: Encoder, state: Mapping[str, Tensor], device: str) -> Encoder:
    """Return an encoder of its own with these weights, in eval mode."""
    copy = build_encoder(encoder.architecture).to(device)
    copy.load_state_dict(dict(state), strict=True)
    copy.preprocessing = encoder.preprocessing
    return copy.eval()


def _knn(encoder: Encoder, held_out: HeldOut, device: str, precision: str) -> dict[str, Any]:
    """Return kNN's figures by feature."""

    def tokens(pixels_BHWC: Tensor) -> Tokens:
        with autocast(device, precision):
            output: Tokens = encoder(encoder.preprocessing.apply(pixels_BHWC.to(device)))
        return output

    pixels, labels, bank = held_out
    embedded = embed(tokens, (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)))
    result = {}
    for name, features_ND in (("cls", embedded.cls_ND), ("mean_patch", embedded.mean_patch_ND)):
        if features_ND is not None:
            result[name] = knn(features_ND[:bank], labels[:bank], features_ND[bank:], labels[bank:], device=device).figures()
    return result
