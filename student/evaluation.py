"""k-nearest-neighbour classification on frozen features: the paper's protocol and the official code's, both exact.

Paper: k = 10, L2-normalised class tokens, majority vote (ties go to the class that is nearer in the sum of ranks). Official code: cosine,
votes weighted by softmax of similarity / 0.07 over the 200 nearest, k in {10, 20, 100, 200}. Both compare every test image with every
training image, in chunks of bounded memory, on any device; there is no approximate index. Neighbours are found once for both protocols:
that product is all the cost (50,000 × 10,000 images of 2,048 channels take half a minute on one core). Axes: N images, D channels, k
neighbours, n test images of a chunk.
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
_CHUNK_SIMILARITIES = 1 << 26  # 256 MB of fp32

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Embeddings(NamedTuple):
    """Features of N images: cls_ND (None without class tokens) and mean_patch_ND, fp32."""

    cls_ND: Floats | None
    mean_patch_ND: Floats


class Knn(NamedTuple):
    """Percent of test images that are classified right: by the paper's protocol, and by the official code's for each k."""

    paper: float
    official: dict[int, float]


def knn(
    train_ND: Floats,
    train_labels: Labels,
    test_ND: Floats,
    test_labels: Labels,
    *,
    k: int = PAPER_K,
    ks: Sequence[int] = OFFICIAL_KS,
    temperature: float = OFFICIAL_TEMPERATURE,
    device: str = "cpu",
    on_done: Callable[[int], None] = lambda done: None,
) -> Knn:
    """Both protocols from one search on `device`; `on_done` hears how many test images are done.

    Raises `BadInput` with fewer than k training images; ks beyond them are left out.
    """
    usable = [one for one in ks if one <= len(train_ND)]
    paper, right, done = 0, dict.fromkeys(usable, 0), 0
    classes = int(train_labels.max()) + 1 if len(train_labels) else 0
    for similarity_nk, labels_nk, truth in _neighbours(train_ND, train_labels, test_ND, test_labels, max([k, *usable]), device):
        paper += _right(_majority(labels_nk[:, :k], classes), truth)
        weights_nk = functional.softmax(similarity_nk[:, : max(usable, default=1)] / temperature, dim=1)
        for one in usable:
            right[one] += _right(_votes(labels_nk[:, :one], weights_nk[:, :one], classes), truth)
        done += len(truth)
        on_done(done)
    return Knn(100.0 * paper / len(test_ND), {one: 100.0 * count / len(test_ND) for one, count in right.items()})


def _votes(labels_nk: Tensor, weights_nk: Tensor, classes: int) -> Tensor:
    return torch.zeros(len(labels_nk), classes, device=labels_nk.device).scatter_add_(1, labels_nk, weights_nk)


def _majority(labels_nk: Tensor, classes: int) -> Tensor:
    """A vote for each neighbour, and less than one vote in all that falls with distance: it decides ties and nothing else."""
    k = labels_nk.shape[1]
    nearness = torch.arange(k, 0, -1, dtype=torch.float32, device=labels_nk.device) / (k * (k + 1))
    return _votes(labels_nk, (1 + 0.5 * nearness).expand(labels_nk.shape), classes)


def _right(votes_nC: Tensor, truth: Tensor) -> int:
    return int((votes_nC.argmax(dim=1) == truth).sum())


def _neighbours(
    train_ND: Floats, train_labels: Labels, test_ND: Floats, test_labels: Labels, k: int, device: str
) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """For each chunk of test images: cosine (n, k) in falling order, the neighbours' labels (n, k), the true labels (n,)."""
    if len(train_ND) < k or not len(test_ND):
        raise BadInput(f"kNN with k = {k} needs as many training images and a test image, got {len(train_ND)} and {len(test_ND)}")
    if min(train_labels.min(), test_labels.min()) < 0:
        raise BadInput("kNN needs a label for every image of both sets; index a source whose folders or fields name the class")
    bank_DN = functional.normalize(torch.from_numpy(train_ND).to(device), dim=1).t()
    bank_labels, truth = torch.from_numpy(train_labels).to(device), torch.from_numpy(test_labels).to(device)
    chunk = max(1, min(_CHUNK_SIMILARITIES // len(train_ND), 512))
    for start in range(0, len(test_ND), chunk):
        queries = functional.normalize(torch.from_numpy(test_ND[start : start + chunk]).to(device), dim=1)
        similarity, indexes = (queries @ bank_DN).topk(k, dim=1)
        yield similarity, bank_labels[indexes], truth[start : start + chunk]


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
