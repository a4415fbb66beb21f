"""k-nearest-neighbour classification on frozen features: the paper's protocol, the official code's, and ours, all exact.

    paper       k = 10, the smallest L2 distance between features as they are, majority vote (EUPE, appendix C.1, which states no
                normalisation; the images are 224 px)
    official    cosine, votes weighted by softmax of similarity / 0.07 over the max(k) nearest, k in {10, 20, 100, 200}
    ours        k = 10, cosine, majority vote

A tie of a majority goes to the class that is nearer in the sum of ranks (the paper does not say). A k above the number of training images
becomes that number, each k once, as in the official code. Every test image is compared with every training image, in chunks of bounded
memory, on any device; there is no approximate index. Price: one product of all pairs for cosine and one for L2 (50,000 × 10,000 images of
2,048 channels take half a minute each on one core). Axes: N images, D channels, k neighbours, n test images of a chunk.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput
from ...teachers.encoders.tokens import Tokens

PAPER_K = 10
PAPER_SIZE_PX = 224
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
    """Percent of test images that are classified right, by protocol; the official one for each k."""

    paper: float
    official: dict[int, float]
    ours: float

    def figures(self) -> dict[str, Any]:
        """Return the percentages as results and metrics hold them."""
        return {"paper": self.paper, "ours": self.ours, "official": {str(k): percent for k, percent in self.official.items()}}


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
    """Classify the test images by every protocol and return the percentages.

    `on_done` is called with the number of finished test images. Raises `BadInput` without images or labels.
    """
    _refuse_unlabelled(train_ND, train_labels, test_ND, test_labels)
    k, usable = min(k, len(train_ND)), sorted({min(k_used, len(train_ND)) for k_used in ks})
    paper, ours, correct, done = 0, 0, dict.fromkeys(usable, 0), 0
    labels, truth = (torch.from_numpy(numbers).to(device) for numbers in (train_labels, test_labels))
    classes, chunk = int(labels.max()) + 1, max(1, min(_CHUNK_SIMILARITIES // len(train_ND), 512))
    by_cosine, by_distance = _Bank.normalised(train_ND, device), _Bank.plain(train_ND, device)
    for start in range(0, len(test_ND), chunk):
        queries, truth_n = test_ND[start : start + chunk], truth[start : start + chunk]
        similarity_nk, neighbours_nk = by_cosine.nearest(queries, max([k, *usable]))
        labels_nk = labels[neighbours_nk]
        ours += _count_correct(_majority(labels_nk[:, :k], classes), truth_n)
        weights_nk = functional.softmax(similarity_nk[:, : max(usable, default=1)] / temperature, dim=1)
        for k_used in usable:
            correct[k_used] += _count_correct(_votes(labels_nk[:, :k_used], weights_nk[:, :k_used], classes), truth_n)
        paper += _count_correct(_majority(labels[by_distance.nearest(queries, k)[1]], classes), truth_n)
        done += len(truth_n)
        on_done(done)
    shares = {k_used: 100.0 * count / len(test_ND) for k_used, count in correct.items()}
    return Knn(100.0 * paper / len(test_ND), shares, 100.0 * ours / len(test_ND))


def _votes(labels_nk: Tensor, weights_nk: Tensor, classes: int) -> Tensor:
    """Return the summed weights of the neighbours by class (n, classes)."""
    return torch.zeros(len(labels_nk), classes, device=labels_nk.device).scatter_add_(1, labels_nk, weights_nk)


def _majority(labels_nk: Tensor, classes: int) -> Tensor:
    """Return a vote for each neighbour, plus less than one vote in all that falls with distance: it decides ties and nothing else."""
    k = labels_nk.shape[1]
    nearness = torch.arange(k, 0, -1, dtype=torch.float32, device=labels_nk.device) / (k * (k + 1))
    return _votes(labels_nk, (1 + 0.5 * nearness).expand(labels_nk.shape), classes)


def _count_correct(votes_nC: Tensor, truth: Tensor) -> int:
    """Return how many images have their own class first."""
    return int((votes_nC.argmax(dim=1) == truth).sum())


def _refuse_unlabelled(train_ND: Floats, train_labels: Labels, test_ND: Floats, test_labels: Labels) -> None:
    """Raise `BadInput` without images, and for images without a label."""
    if not len(train_ND) or not len(test_ND):
        raise BadInput(f"kNN needs training images and test images, got {len(train_ND)} and {len(test_ND)}")
    if min(train_labels.min(), test_labels.min()) < 0:
        raise BadInput("kNN needs a label for every image of both sets; index a source whose folders or fields name the class")


class _Bank(NamedTuple):
    """Training features, ready to be searched: the score of a pair is `queries @ bank_DN − penalty_N`, the highest the nearest."""

    bank_DN: Tensor
    penalty_N: Tensor | None
    centre_D: Tensor | None

    @classmethod
    def normalised(cls, train_ND: Floats, device: str) -> "_Bank":
        """Return a bank that is searched by cosine."""
        return cls(functional.normalize(torch.from_numpy(train_ND).to(device), dim=1).t(), None, None)

    @classmethod
    def plain(cls, train_ND: Floats, device: str) -> "_Bank":
        """Return a bank that is searched by L2 distance.

        ‖q − b‖² orders as ‖b‖² / 2 − q·b does; features are taken around their mean, where fp32 loses least.
        """
        bank_ND = torch.from_numpy(train_ND).to(device)
        centre_D = bank_ND.mean(dim=0, dtype=torch.float64).float()
        centred_ND = bank_ND - centre_D
        return cls(centred_ND.t(), centred_ND.square().sum(dim=1) / 2, centre_D)

    def nearest(self, queries_nD: Floats, k: int) -> tuple[Tensor, Tensor]:
        """Return scores (n, k) in falling order, and the indexes of the neighbours (n, k)."""
        queries = torch.from_numpy(queries_nD).to(self.bank_DN.device)
        if self.penalty_N is None or self.centre_D is None:
            return (functional.normalize(queries, dim=1) @ self.bank_DN).topk(k, dim=1)
        return ((queries - self.centre_D) @ self.bank_DN - self.penalty_N).topk(k, dim=1)


def embed(model: Callable[[Tensor], Tokens], batches: Iterable[NDArray[np.uint8]]) -> Embeddings:
    """Return the features of uint8 image batches (B, H, W, 3) in order, by a frozen model of such images (a `Teacher` is one).

    Raises `BadInput` for no image, and for NaN or infinite features: they would have neighbours, and those would mean nothing.
    """
    classes, patches = [], []
    for pixels_BHWC in batches:
        with torch.no_grad():
            tokens = model(torch.from_numpy(pixels_BHWC))
        if tokens.cls_BD is not None:
            classes.append(tokens.cls_BD.float().cpu())
        patches.append(tokens.patch_BHWD.float().mean(dim=(1, 2)).cpu())
    if not patches:
        raise BadInput("there is no image to embed")
    embeddings = Embeddings(torch.cat(classes).numpy() if classes else None, torch.cat(patches).numpy())
    if not all(np.isfinite(features_ND).all() for features_ND in embeddings if features_ND is not None):
        raise BadInput("the model gives features that are not finite, of which a figure would mean nothing; look at its weights")
    return embeddings
