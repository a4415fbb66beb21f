"""Zero-shot classification: the class whose descriptions are nearest to an image in the space of a text tower.

CLIP's protocol: a class is the mean of the unit-length embeddings of all its names in all templates, scaled to unit length again; an image
is its embedding at unit length; the class with the highest cosine wins. Axes: N images, K classes, D channels.

    TEMPLATES.toml      templates = ["a photo of a {}.", "a drawing of a {}."]      # or a set by name: "names", "photo", "clip-80"
                        [classes]                       # left out: the dataset's own labels are the names
                        n01440764 = "tench"             # label of the dataset = one name, or a list of names
"""

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.choices import TemplateSet
from ...storage.core.errors import BadInput, unknown_name

CLIP_80 = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.", "a bright photo of a {}.", "a photo of a clean {}.",
    "a photo of a dirty {}.", "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.",
    "a painting of a {}.", "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.",
    "a cropped photo of a {}.", "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.",
    "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.", "the {} in a video game.",
    "a sketch of a {}.", "a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.",
    "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.", "a pixelated photo of a {}.",
    "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.", "a photo of the nice {}.",
    "a photo of the small {}.", "a photo of the weird {}.", "the cartoon {}.", "art of the {}.", "a drawing of the {}.",
    "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.", "a tattoo of the {}.",
)  # fmt: skip
PAPER_TEMPLATES = ("{}",)
TEMPLATES: dict[TemplateSet, tuple[str, ...]] = {"names": PAPER_TEMPLATES, "photo": ("a photo of a {}.",), "clip-80": CLIP_80}
"""By name: the bare names of the classes (EUPE, appendix C.1), one sentence (ours), and the set that CLIP was published with (Radford et
al. 2021, github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb, MIT licence)."""
DEFAULT_TEMPLATES = TEMPLATES["photo"]
_NO_WORD = re.compile(r"n\d{8}|[-+]?\d+")  # WordNet's id of an ImageNet class, a number


@dataclass(frozen=True)
class Descriptions:
    """Names by label (empty: the labels are the names) and the templates around them; raises BadInput for a template without {}."""

    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    names: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        bad = [template for template in self.templates if template.count("{}") != 1]
        if bad or not self.templates:
            raise BadInput(f"a template holds one {{}} for the class's name: {bad[0]!r}" if bad else "zero-shot needs a template")

    def texts(self, label: str) -> list[str]:
        """Return all descriptions of a label; raises BadInput when it has no name."""
        if self.names is not None and label not in self.names:
            raise BadInput(f"the file of class names has none for the dataset's label {label!r}")
        names = (label.replace("_", " "),) if self.names is None else self.names[label]
        return [template.replace("{}", name) for name in names for template in self.templates]


def check_names(labels: Iterable[str], names: Mapping[str, Any] | None) -> None:
    """Raise `BadInput` where labels that have no names are ids or numbers: as texts they would give figures at chance."""
    ids = [label for label in labels if names is None and _NO_WORD.fullmatch(label)]
    if ids:
        raise BadInput(
            f"{len(ids):,} labels are ids and no words ({', '.join(sorted(ids)[:3])}): give their names as [classes] of --classes"
        )


def told_from_guessing(percent: float, trials: int, chance: float) -> bool:
    """Return whether a share in percent lies more than three standard errors above what guessing gives, a `chance` of at most 1 each."""
    return percent / 100 > chance + 3 * math.sqrt(chance * (1 - chance) / trials)


def read_descriptions(path: Path | None, templates: TemplateSet | None = None) -> Descriptions:
    """Return what a TOML file holds, or the default without one; `templates` names a set for a file that has none.

    Raises BadInput for keys other than `templates` and `classes`, and for templates given twice.
    """
    if templates is not None and templates not in TEMPLATES:
        raise unknown_name("set of templates", templates, TEMPLATES)
    named = DEFAULT_TEMPLATES if templates is None else TEMPLATES[templates]
    if path is None:
        return Descriptions(named)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a TOML file of class names and templates: {error}") from error
    if stray := sorted(table.keys() - {"templates", "classes"}):
        raise BadInput(f"{path}: unknown key {stray[0]!r}; known: templates, classes")
    classes = table.get("classes")
    names = None if classes is None else {str(label): _strings(path, label, value) for label, value in classes.items()}
    own = table.get("templates")
    if own is not None and templates is not None:
        raise BadInput(f"{path} has templates and --templates {templates} gives others; leave one away")
    if isinstance(own, str) and own in TEMPLATES:
        return Descriptions(TEMPLATES[own], names)
    return Descriptions(named if own is None else _strings(path, "templates", own), names)


def _strings(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """Return a text or a list of texts as a tuple; raises BadInput for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{path}: {key} must be a text or a list of texts, got {value!r}")
    return tuple(texts)


def build_classifier(labels: Sequence[str], descriptions: Descriptions, embed_texts: Callable[[list[str]], Tensor]) -> Tensor:
    """Return unit-length class vectors (K, D); `embed_texts` gives (n, D) of any length."""
    rows = [functional.normalize(embed_texts(descriptions.texts(label)).float(), dim=1).mean(dim=0) for label in labels]
    return functional.normalize(torch.stack(rows), dim=1)


def class_cosines(images_ND: Tensor, classes_KD: Tensor) -> Tensor:
    """Return the cosine of each image with each class (N, K)."""
    return functional.normalize(images_ND.float(), dim=1) @ classes_KD.t()


def top_k_accuracy(cosine_NK: Tensor, labels_N: Tensor, top: int) -> float:
    """Return the percentage of images whose label is among the `top` nearest classes."""
    nearest = cosine_NK.topk(min(top, cosine_NK.shape[1]), dim=1).indices
    return 100.0 * float((nearest == labels_N[:, None]).any(dim=1).double().mean())
