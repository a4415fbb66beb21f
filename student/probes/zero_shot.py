"""Zero-shot classification: the class whose descriptions are nearest to an image in the space of a text tower.

CLIP's protocol: a class is the mean of the unit-length embeddings of all its names in all templates, scaled to unit length again; an image
is its embedding at unit length; the class with the highest cosine wins. Axes: N images, K classes, D channels.

    TEMPLATES.toml      templates = ["a photo of a {}.", "a drawing of a {}."]
                        [classes]                       # left out: the dataset's own labels are the names
                        n01440764 = "tench"             # label of the dataset = one name, or a list of names
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput

DEFAULT_TEMPLATES = ("a photo of a {}.",)


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


def read_descriptions(path: Path | None) -> Descriptions:
    """Return what a TOML file holds, or the default without one; raises BadInput for keys other than `templates` and `classes`."""
    if path is None:
        return Descriptions()
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a TOML file of class names and templates: {error}") from error
    if stray := sorted(table.keys() - {"templates", "classes"}):
        raise BadInput(f"{path}: unknown key {stray[0]!r}; known: templates, classes")
    classes = table.get("classes")
    names = None if classes is None else {str(label): _strings(path, label, value) for label, value in classes.items()}
    return Descriptions(_strings(path, "templates", table.get("templates", list(DEFAULT_TEMPLATES))), names)


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
