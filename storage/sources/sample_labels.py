"""Which label belongs to which image of a WebDataset tar.

The files of one sample have one key: the name up to the first dot of its last part (`a/1` of `a/1.seg.png`), wherever they stand in the
tar. `1.cls`, `1.label` or `1.json` (its "label", or its "cls") label every image of `1`; `1.left.cls` belongs to `1.left.png` alone. So a
name with a dot of its own (`photo.0000.png`) makes one sample of a whole tar; where that gives several images several labels, it is
refused rather than guessed. Held are names and labels, never bytes. A label that cannot be used is counted and said.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from ..core.errors import BadInput
from .found import LeftOut, TarEnd, of_another_kind, shown
from .image_kinds import ending_of, split_name, targets_among

LABEL_ENDINGS = (".cls", ".label", ".json")  # in the order in which one of them is believed
MAX_LABEL_BYTES = 1 << 20
MAX_LABEL_LETTERS = 200
_SHOWN = 3

_TOO_LONG = f"labels longer than {MAX_LABEL_LETTERS} letters, or files of labels longer than {MAX_LABEL_BYTES:,} bytes"
_UNREADABLE = "labels that cannot be read"
_NOBODYS = "labels that belong to no image"
NONE = "labels of -1, which stands for none"
_NULL = "null labels beside another key of the same .json, which was taken"
_NAME_AND_NUMBER = "samples labelled by a number and by a name; the one of .cls was taken, else of .label, else the first of .json"


class _Label(NamedTuple):
    member: str
    value: str


class Unusable(Exception):
    """What is wrong with a label, in words under which its like are counted."""


class Samples:
    """The images and labels of one tar by key, while it is read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._images: defaultdict[str, list[str]] = defaultdict(list)
        self._labels: defaultdict[str, list[_Label]] = defaultdict(list)

    def add_image(self, name: str) -> None:
        """Note a member that is an image."""
        self._images[split_name(name)[0]].append(name)

    def add_label(self, name: str, data: bytes) -> Iterator[LeftOut]:
        """Note a member that may hold a label, read up to one byte past the limit; yields what is not used of it."""
        place = shown(f"{self._path}/{name}")
        try:
            if len(data) > MAX_LABEL_BYTES:
                raise Unusable(_TOO_LONG)
            values, has_null = _in_json(data) if ending_of(name) == ".json" else ([_text(_decoded(data))], False)
        except Unusable as error:
            yield LeftOut(place, str(error))
            return
        if not values:
            yield of_another_kind(place)
        if values and has_null:
            yield LeftOut(place, _NULL)
        for value in values:
            if value == "-1":
                yield LeftOut(place, NONE)
            else:
                self._labels[split_name(name)[0]].append(_Label(name, value))

    def settle(self) -> Iterator[LeftOut | TarEnd]:
        """Give every image its label, and yield the labels that are left; raise `BadInput` where names or labels do not fit."""
        found: dict[str, str] = {}
        targets = targets_among([name for images in self._images.values() for name in images])
        for key, labels in self._labels.items():
            images = self._images.get(key, [])
            photos = [name for name in images if name not in targets]
            usable = [label for label in labels if photos and self._belongs(key, label, labels, photos)]
            yield from (LeftOut(shown(f"{self._path}/{label.member}"), _NOBODYS) for label in labels if label not in usable)
            if usable:
                label, is_choice = self._one_of(usable)
                if is_choice:
                    yield LeftOut(shown(f"{self._path}/{label.member}"), _NAME_AND_NUMBER)
                found.update({f"{self._path}/{name}": label.value for name in images})
        yield TarEnd(found, frozenset(f"{self._path}/{name}" for name in targets))

    def _belongs(self, key: str, label: _Label, labels: list[_Label], photos: list[str]) -> bool:
        """Return whether a label is one of a sample's images; raise `BadInput` for several images and labels under one key."""
        middle = split_name(label.member)[1]
        if not middle:
            return True
        if len(photos) == 1:
            _, own, ending = split_name(photos[0])
            return middle in (own, f"{own}.{ending}".lstrip("."))  # `1.left.cls` or `1.left.png.cls`
        members = list(dict.fromkeys(one.member for one in labels))
        raise BadInput(
            f"{self._path}: {_named(photos)} and {_named(members)} are one sample, {key!r}, because a name is split at its first dot, as "
            f"WebDataset does: {len(photos):,} images, {len(members):,} labels, and nothing says which belongs to which. Write the tar "
            "again with names whose only dot is before the ending (photo_0000.png, photo_0000.cls)"
        )

    def _one_of(self, labels: list[_Label]) -> tuple[_Label, bool]:
        """Return the label of a sample, and whether there was another; raise `BadInput` where two of a kind differ."""
        by_number = {label.value.lstrip("-").isdecimal(): label for label in labels}
        for label in labels:
            other = by_number[label.value.lstrip("-").isdecimal()]
            if other.value != label.value:
                raise BadInput(
                    f"{self._path}: two labels of one sample differ: {label.member} says {label.value!r}, {other.member} {other.value!r}; "
                    "correct one of them, or leave it out"
                )
        best = min(labels, key=lambda label: LABEL_ENDINGS.index(ending_of(label.member)))
        return best, len(by_number) > 1


def _named(members: list[str]) -> str:
    return ", ".join(members[:_SHOWN]) + (", …" if len(members) > _SHOWN else "")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable(_UNREADABLE) from None


def _text(text: str) -> str:
    """Return a label as it is kept: one line of letters that can be printed, not empty, not too long."""
    line = " ".join(text.split())
    if not line or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in line):
        raise Unusable(_UNREADABLE)
    if len(line) > MAX_LABEL_LETTERS:
        raise Unusable(_TOO_LONG)
    return line


def _in_json(data: bytes) -> tuple[list[str], bool]:
    """Return the labels in a .json, and whether a key for one is null; raise `Unusable` for what is no JSON, or a label that is no word."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Unusable(_UNREADABLE) from None
    given = [value[key] for key in ("label", "cls") if key in value] if isinstance(value, dict) else []
    return [label_text(one) for one in given if one is not None], None in given


def label_text(value: Any) -> str:
    """Return a label of any source as it is kept; raise `Unusable`."""
    return _text(_word(value))


def _word(value: Any) -> str:
    """Return a label that has a type as text; a whole number is the same one as a fraction."""
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)
    if not isinstance(value, (str, bool, int)):
        raise Unusable(_UNREADABLE)
    return str(value)
