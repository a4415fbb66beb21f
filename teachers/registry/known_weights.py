"""Published weight files that are known by their sha256, with the model that they are and its terms, wherever they lie and however called.

A digest is here only where the publisher states it: in the file's own name, which torch.hub's convention makes the first eight digits
(DINOv3's, in the publisher's code), or on the publisher's page of the file. Eight digits tell apart what was mixed up, not what was forged.
"""

from typing import NamedTuple

from .table import ROWS, Terms


class KnownWeights(NamedTuple):
    """A published file."""

    model: str
    """What it is, for people."""
    terms: Terms
    source: str
    """Where the publisher states the digest."""


_DINOV3_CODE = "github.com/facebookresearch/dinov3, dinov3/hub/backbones.py"
_DINOV3_FILES = {
    "08c60483": "dinov3_vits16 (LVD-1689M)", "4057cbaa": "dinov3_vits16plus (LVD-1689M)", "73cec8be": "dinov3_vitb16 (LVD-1689M)",
    "8aa4cbdd": "dinov3_vitl16 (LVD-1689M)", "eadcf0ff": "dinov3_vitl16 (SAT-493M)", "46503df0": "dinov3_vitl16plus (LVD-1689M)",
    "7c1da9a5": "dinov3_vith16plus (LVD-1689M)", "a955f4ea": "dinov3_vit7b16 (LVD-1689M)", "a6675841": "dinov3_vit7b16 (SAT-493M)",
    "21b726bb": "dinov3_convnext_tiny (LVD-1689M)", "296db49d": "dinov3_convnext_small (LVD-1689M)",
    "801f2ba9": "dinov3_convnext_base (LVD-1689M)", "61fa432d": "dinov3_convnext_large (LVD-1689M)",
}  # fmt: skip
_HUB_FILES = {  # sha256 → repository, and the named teacher whose terms are the file's
    "608c1132b7a82bf4652827a209509864b5d7d925aa2d2d256e2e1a2968b16792": ("nvidia/RADIO-B", "radiov2.5-b"),
    "d9153ddb6c061bcf4ec299adcac9e83eda290bf56349138918714cc5e9b6417d": ("nvidia/RADIO-L", "radiov2.5-l"),
    "7929c4c70895835ec06dd15d69f36f4f1d77973964ecac445eb96db1d0add7f3": ("nvidia/RADIO-H", "radiov2.5-h"),
    "2f924e2aa683b67977a9be54a3441653a49f6e8664358e549a19ff52f672aea5": ("timm/samvit_huge_patch16.sa1b", "sam-h"),
    "a9798021c4fa01b8d7df0d053d2b55e6c0a1f7d25611afad1018b84761bf1393": ("timm/samvit_large_patch16.sa1b", "sam-h"),
    "31a9f4edc394c5ae7a96045576570189a354ada86094a5842bcc9a05a8939ea2": ("timm/samvit_base_patch16.sa1b", "sam-h"),
    "55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b": ("timm/vit_base_patch14_dinov2.lvd142m", "dinov2-g"),
}

KNOWN: dict[str, KnownWeights] = {
    **{digits: KnownWeights(model, ROWS["dinov3-7b"].terms, _DINOV3_CODE) for digits, model in _DINOV3_FILES.items()},
    **{
        sha256: KnownWeights(repository, ROWS[teacher].terms, f"huggingface.co/{repository}, the page of model.safetensors")
        for sha256, (repository, teacher) in _HUB_FILES.items()
    },
}
"""By sha256, or its first eight digits."""


def known_by_digest(sha256: str) -> KnownWeights | None:
    """Return the published file that has this sha256, None for any other."""
    return KNOWN.get(sha256) or KNOWN.get(sha256[:8])
