"""The adaptors in a RADIOv2.5's file: each maps one class token to what a teacher of RADIO makes of the picture, CLIP's embedding say.

    _heads.0.…, _heads.clip.…              a training's checkpoint (.pth.tar, through convert-weights): by number or name of the teacher
    radio_model.adaptors.clip.head_mlp.…   a folder of the hub that was published with adaptors

Names, shapes and what is computed are facts from NVlabs/RADIO (adaptor_mlp, adaptor_generic, hubconf); nothing of it is copied. An adaptor
takes the class token of its teacher, or the only one, as it is; what it gives is not normalised either, and lies where that teacher's own
projection ends. Two forms are known by their tensors:

- fc1, blocks.N.{0,2}, final.{0,2}: linear; each block adds linear(GELU(norm)); linear(GELU(norm)). pre_norm.0: GELU(norm) before all.
- fc1, norm, inner.{0,1,3,4,…}, fc2: linear, ReLU(norm), for each inner pair linear and ReLU(norm), linear.

The number of a name (and the name of a number) stands in no tensor: it is the place in `args.teachers`, read from a config.json beside the
file that has them, as the hub's folders do, else RADIOv2.5's order. Axes: N images, D channels.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput, unknown_name
from ..encoders.architectures import Options
from ..encoders.published_vit import PUBLISHED_VIT, RADIO_LAYOUTS
from .sharded import listed
from .weights import read_weights, shapes_in

Shapes = Mapping[str, tuple[int, ...]]
RADIO_TEACHERS = ("clip", "siglip", "dino_v2", "sam")
"""By the names of RADIOv2.5's own code, in the order of their class tokens."""
_TENSOR = re.compile(r"(?:radio_model\.)?(?:_heads\.(?P<head>[^.]+)|adaptors\.(?P<adaptor>[^.]+)\.(?P<part>[^.]+))\.(?P<name>.+)")
_LAST = ("final.2.weight", "fc2.weight", "final.2.parametrizations.weight.original")
_FEATURES = "feat_mlp"  # the part of an adaptor that maps patch tokens


@dataclass(frozen=True)
class RadioAdaptor:
    """One adaptor of a RADIO."""

    name: str
    token: int
    """Which class token it takes, counted from 0."""
    channels: slice
    """Where that stands in RADIO's class token, which is several one after the other."""
    tensors: Mapping[str, Tensor]

    def __call__(self, cls_ND: Tensor) -> Tensor:
        """Return the images in the teacher's space (N, D), fp32, of RADIO's class tokens."""
        x = cls_ND[:, self.channels].float()
        return self._residual(x) if "final.2.weight" in self.tensors else self._plain(x)

    def _residual(self, x: Tensor) -> Tensor:
        x = self._linear(functional.gelu(self._norm(x, "pre_norm.0")) if "pre_norm.0.weight" in self.tensors else x, "fc1")
        for block in range(_blocks(self.tensors)):
            x = x + self._linear(functional.gelu(self._norm(x, f"blocks.{block}.0")), f"blocks.{block}.2")
        return self._linear(functional.gelu(self._norm(x, "final.0")), "final.2")

    def _plain(self, x: Tensor) -> Tensor:
        x = functional.relu(self._norm(self._linear(x, "fc1"), "norm"))
        for place in range(0, 3 * _pairs(self.tensors), 3):
            x = functional.relu(self._norm(self._linear(x, f"inner.{place}"), f"inner.{place + 1}"))
        return self._linear(x, "fc2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])


def has_adaptors(architecture: Options) -> bool:
    """Return whether files of an architecture can hold adaptors: RADIOv2.5's."""
    return architecture["name"] == PUBLISHED_VIT and architecture["layout"] in RADIO_LAYOUTS


class _Found:
    """An adaptor's tensors, by their names in the file and within the adaptor."""

    def __init__(self, name: str, token: int | None) -> None:
        self.name, self.token = name, token
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.published: dict[str, str] = {}

    @property
    def width(self) -> int | None:
        """Channels of what it gives; None where its last layer is not there."""
        return next((self.shapes[name][0] for name in _LAST if name in self.shapes), None)


def check_adaptor(weights: Path, architecture: Options, teacher: str | None, width: int) -> None:
    """Raise `BadInput` as `load_adaptor` does; headers are read alone."""
    _find(weights, architecture, teacher, width)


def load_adaptor(weights: Path, architecture: Options, teacher: str | None, width: int) -> RadioAdaptor:
    """Return the adaptor that is named, None: the only one that gives `width` channels, as fp32.

    Raise `BadInput` for a file without it, for one of another width, one whose class token the summary lacks, and one whose tensors are not
    exactly an adaptor's.
    """
    found, token = _find(weights, architecture, teacher, width)
    tensors = read_weights(weights, found.published.__contains__)
    start = architecture["summary"].index(token) * architecture["width"]
    own = {found.published[name]: tensor.float() for name, tensor in tensors.items()}
    return RadioAdaptor(found.name, token, slice(start, start + architecture["width"]), own)


def _find(weights: Path, architecture: Options, teacher: str | None, width: int) -> tuple[_Found, int]:
    """Return the adaptor and the class token that it takes."""
    found = _adaptors(weights, architecture)
    if not found:
        raise BadInput(
            f"{weights} holds no adaptors, so nothing leads from its class tokens to texts; the checkpoints of nvidia/RADIO have them "
            "(.pth.tar, through `eupe-pipeline convert-weights`)"
        )
    said = ", ".join(f"{one.name} ({one.width} channels)" for one in found.values())
    fitting = [one for one in found.values() if one.width == width]
    if teacher is None and len(fitting) != 1:
        raise BadInput(f"{len(fitting)} adaptors of {weights} give the text tower's {width} channels; say which with --teacher: {said}")
    if teacher is not None and teacher not in found:
        raise unknown_name(f"adaptor in {weights}", teacher, found)
    chosen = fitting[0] if teacher is None else found[teacher]
    if chosen.width != width:
        raise BadInput(f"adaptor {chosen.name} of {weights} gives {chosen.width} channels, the text tower {width}; its adaptors: {said}")
    if chosen.token is None:
        raise BadInput(
            f"no config.json beside {weights} names RADIO's teachers, so which class token adaptor {chosen.name} takes is not known"
        )
    if chosen.token not in architecture["summary"]:
        raise BadInput(f"adaptor {chosen.name} takes class token {chosen.token}, the summary has {architecture['summary']} alone")
    _check(weights, chosen, architecture["width"])
    return chosen, chosen.token


def _adaptors(weights: Path, architecture: Options) -> dict[str, _Found]:
    """Return the adaptors of a file by name."""
    found, teachers = dict[str, _Found](), _teachers(weights)
    for published, shape in shapes_in(weights).items():
        match = _TENSOR.fullmatch(published)
        if match is None or match["part"] == _FEATURES:
            continue
        name, number = _name_and_number(str(match["head"] or match["adaptor"]), teachers)
        part = "" if match["part"] in (None, "head_mlp") else f"{match['part']}."
        one = found.setdefault(name, _Found(name, number if architecture["cls_tokens"] > 1 else 0))
        if f"{part}{match['name']}" in one.shapes:
            raise BadInput(f"{weights} has two tensors for one place: {published} is the second that is {match['name']} of adaptor {name}")
        one.shapes[f"{part}{match['name']}"] = shape
        one.published[published] = f"{part}{match['name']}"
    return found


def _name_and_number(stored: str, teachers: tuple[str, ...]) -> tuple[str, int | None]:
    """Return name and number of a teacher that a file names by one of them; None where the number is not known.

    A name that stands twice among the teachers is that of the first.
    """
    if not stored.isdigit():
        return stored, teachers.index(stored) if stored in teachers else None
    number = int(stored)
    return teachers[number] if number < len(teachers) and teachers.index(teachers[number]) == number else stored, number


def _teachers(weights: Path) -> tuple[str, ...]:
    """Return the names of RADIO's teachers in the order of their numbers."""
    try:
        record: Any = json.loads((weights.parent / "config.json").read_text())
        return tuple(str(teacher["name"]) for teacher in record["args"]["teachers"])
    except (OSError, ValueError, KeyError, TypeError):
        return RADIO_TEACHERS


def _blocks(names: Mapping[str, Any]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("blocks.")})


def _pairs(names: Mapping[str, Any]) -> int:
    return len([name for name in names if name.startswith("inner.")]) // 4


def _check(weights: Path, found: _Found, width: int) -> None:
    """Raise `BadInput` unless the tensors are those of an adaptor for class tokens of `width` channels, all of them and no other."""
    shapes, hidden = found.shapes, found.shapes.get("fc1.weight", (0, 0))[0]
    wanted = _linear("fc1", width, hidden)
    if "final.2.weight" in shapes:
        wanted |= _norm("pre_norm.0", width) if "pre_norm.0.weight" in shapes else {}
        for block in range(_blocks(shapes)):
            wanted |= _norm(f"blocks.{block}.0", hidden) | _linear(f"blocks.{block}.2", hidden, hidden)
        wanted |= _norm("final.0", hidden) | _linear("final.2", hidden, found.width or 0)
    else:
        wanted |= _norm("norm", hidden) | _linear("fc2", hidden, found.width or 0)
        for place in range(0, 3 * _pairs(shapes), 3):
            wanted |= _linear(f"inner.{place}", hidden, hidden) | _norm(f"inner.{place + 1}", hidden)
    faults = {
        "missing": [name for name in wanted if name not in shapes],
        "unexpected": [name for name in shapes if name not in wanted],
        "of another shape": [name for name in shapes if name in wanted and shapes[name] != wanted[name]],
    }
    if any(faults.values()):
        told = "; ".join(listed(what, names) for what, names in faults.items() if names)
        spectral = any("parametrizations" in name for name in shapes)
        hint = " Weights that are still spectral reparametrisations are not computed here: take the released file" if spectral else ""
        raise BadInput(f"adaptor {found.name} of {weights} is in neither layout that is known: {told}.{hint}")


def _linear(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
