"""k-nearest-neighbour classification on frozen features: the paper's protocol and the official code's, both exact.

Paper: k = 10, L2-normalised class tokens, majority vote (ties go to the class that is nearer in the sum of ranks). Official code: cosine,
votes weighted by softmax of similarity / 0.07, k in {10, 20, 100, 200}. Both compare every test image with every training image, in
chunks of bounded memory; there is no approximate index. Axes: N images, D channels, k neighbours.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..storage.errors import BadInput
from ..teachers.tokens import Tokens

PAPER_K = 10
OFFICIAL_KS = (10, 20, 100, 200)
OFFICIAL_TEMPERATURE = 0.07
_CHUNK = 512

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Embeddings(NamedTuple):
    """Features of N images: cls_ND (None without class tokens) and mean_patch_ND, fp32."""

    cls_ND: Floats | None
    mean_patch_ND: Floats


def knn_paper(train_ND: Floats, train_labels: Labels, test_ND: Floats, test_labels: Labels, k: int = PAPER_K) -> float:
    """Percent of test images whose majority label among the k nearest is right; raises `BadInput` without k images."""
    right = 0
    for _, labels_nk, truth in _neighbours(train_ND, train_labels, test_ND, test_labels, k):
        votes = functional.one_hot(labels_nk, int(train_labels.max()) + 1).sum(dim=1).float()
        # Less than one vote in all, falling with distance: it decides ties and nothing else.
        nearness = torch.arange(k, 0, -1, dtype=torch.float32) / (k * (k + 1))
        votes.scatter_add_(1, labels_nk, nearness.expand(labels_nk.shape).contiguous() * 0.5)
        right += int((votes.argmax(dim=1) == truth).sum())
    return 100.0 * right / len(test_ND)


def knn_official(
    train_ND: Floats,
    train_labels: Labels,
    test_ND: Floats,
    test_labels: Labels,
    ks: Sequence[int] = OFFICIAL_KS,
    temperature: float = OFFICIAL_TEMPERATURE,
) -> dict[int, float]:
    """Percent right for each k with softmax-weighted votes; ks beyond the training set are left out."""
    usable = [k for k in ks if k <= len(train_ND)]
    right = dict.fromkeys(usable, 0)
    for similarity_nk, labels_nk, truth in _neighbours(train_ND, train_labels, test_ND, test_labels, max(usable, default=1)):
        weights = functional.softmax(similarity_nk / temperature, dim=1)
        for k in usable:
            votes = torch.zeros(len(truth), int(train_labels.max()) + 1)
            votes.scatter_add_(1, labels_nk[:, :k], weights[:, :k])
            right[k] += int((votes.argmax(dim=1) == truth).sum())
    return {k: 100.0 * count / len(test_ND) for k, count in right.items()}


def _neighbours(
    train_ND: Floats, train_labels: Labels, test_ND: Floats, test_labels: Labels, k: int
) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """For each chunk of test images: cosine (n, k) in falling order, the neighbours' labels (n, k), the true labels (n,)."""
    if len(train_ND) < k or not len(test_ND):
        raise BadInput(f"kNN with k = {k} needs as many training images and a test image, got {len(train_ND)} and {len(test_ND)}")
    if min(train_labels.min(), test_labels.min()) < 0:
        raise BadInput("kNN needs a label for every image of both sets; index a source whose folders or fields name the class")
    bank = functional.normalize(torch.from_numpy(train_ND), dim=1)
    bank_labels, truth = torch.from_numpy(train_labels), torch.from_numpy(test_labels)
    for start in range(0, len(test_ND), _CHUNK):
        queries = functional.normalize(torch.from_numpy(test_ND[start : start + _CHUNK]), dim=1)
        similarity, indexes = (queries @ bank.t()).topk(k, dim=1)
        yield similarity, bank_labels[indexes], truth[start : start + _CHUNK]


def embed(model: Callable[[Tensor], Tokens], batches: Iterable[NDArray[np.uint8]]) -> Embeddings:
    """Features of uint8 image batches (B, H, W, 3) in order, by a frozen model that takes such pixels (a `Teacher` does)."""
    classes, patches = [], []
    for pixels_BHWC in batches:
        with torch.no_grad():
            tokens = model(torch.from_numpy(pixels_BHWC))
        if tokens.cls_BD is not None:
            classes.append(tokens.cls_BD.float().cpu())
        patches.append(tokens.patch_BHWD.float().mean(dim=(1, 2)).cpu())
    if not patches:
        raise BadInput("there is no image to embed")
    return Embeddings(torch.cat(classes).numpy() if classes else None, torch.cat(patches).numpy())
