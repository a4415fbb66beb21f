"""Recall of image–text retrieval by cosine, in both directions, as Flickr30k and COCO are measured.

Image → text: right at k where any of an image's own captions is among the k nearest of all captions. Text → image: every caption is a query
of its own, right where its image is among the k nearest. A tie counts against (ours: the paper and the benchmarks leave it open), so that a
model which maps everything to one point has a recall of 0, not 100. Axes: N images, T texts, D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

RECALLS = (1, 5, 10)
_AT_ONCE = 512


def retrieval_recalls(images_ND: Tensor, texts_TD: Tensor, image_of_T: Tensor) -> dict[str, float]:
    """Return `image_to_text_r1` … `text_to_image_r10` in percent; `image_of_T` is the image of each text, every image has one or more."""
    images_ND, texts_TD = (functional.normalize(vectors.double(), dim=1) for vectors in (images_ND, texts_TD))
    before_N, before_T = _others_before(images_ND, texts_TD, image_of_T), _images_before(images_ND, texts_TD, image_of_T)
    directions = {"image_to_text": before_N, "text_to_image": before_T}
    return {f"{name}_r{k}": 100.0 * float((before < k).double().mean()) for name, before in directions.items() for k in RECALLS}


def _others_before(images_ND: Tensor, texts_TD: Tensor, image_of_T: Tensor) -> Tensor:
    """Return for each image how many texts of others are as near as the nearest of its own, or nearer."""
    parts = []
    for start in range(0, len(images_ND), _AT_ONCE):
        cosine_nT = images_ND[start : start + _AT_ONCE] @ texts_TD.t()
        own_nT = image_of_T[None] == torch.arange(start, start + len(cosine_nT))[:, None]
        best_n1 = cosine_nT.masked_fill(~own_nT, -torch.inf).amax(dim=1, keepdim=True)
        parts.append(((cosine_nT >= best_n1 - _EQUAL) & ~own_nT).sum(dim=1))
    return torch.cat(parts)


def _images_before(images_ND: Tensor, texts_TD: Tensor, image_of_T: Tensor) -> Tensor:
    """Return for each text how many other images are as near as its own, or nearer."""
    parts = []
    for start in range(0, len(texts_TD), _AT_ONCE):
        cosine_tN = texts_TD[start : start + _AT_ONCE] @ images_ND.t()
        own_t1 = image_of_T[start : start + _AT_ONCE, None]
        parts.append((cosine_tN >= cosine_tN.gather(1, own_t1) - _EQUAL).sum(dim=1) - 1)
    return torch.cat(parts)


_EQUAL = 1e-12  # products of equal vectors differ by so much where their sums are ordered otherwise
