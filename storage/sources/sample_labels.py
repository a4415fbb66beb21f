"""Assign labels to the images of a WebDataset tar.

The files of one sample share a key: the name up to the first dot of its last part (`a/1` of `a/1.seg.png`), wherever they are in the tar.
`1.cls`, `1.label` or `1.json` (its "label", or its "cls") label every image of `1`; `1.left.cls` belongs to `1.left.png` only. A name with
a dot of its own (`photo.0000.png`) therefore makes one sample of a whole tar; where that gives several images several labels, it is refused
rather than guessed. Names and labels are kept in memory, never bytes. A label that cannot be used is counted and reported.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from ..core.errors import BadInput
from .image_kinds import ending_of, split_name, targets_among
from .source_items import LeftOut, TarEnd, other_file, printable

LABEL_ENDINGS = (".cls", ".label", ".json")  # in the order in which one of them is believed
MAX_LABEL_BYTES = 1 << 20
MAX_LABEL_LETTERS = 200
_SHOWN = 3

_TOO_LONG = f"labels longer than {MAX_LABEL_LETTERS} letters, or files of labels longer than {MAX_LABEL_BYTES:,} bytes"
_UNREADABLE = "labels that cannot be read"
_WITHOUT_IMAGE = "labels that belong to no image"
MINUS_ONE = "labels of -1, which stands for none"
_NULL = "null labels beside another key of the same .json, which was taken"
_NAME_AND_NUMBER = "samples labelled by a number and by a name; the one of .cls was taken, else of .label, else the first of .json"


class _Label(NamedTuple):
    member: str
    value: str


class UnusableLabel(Exception):
    """A label cannot be used; the text is the kind under which it is counted."""


class Samples:
    """The images and labels of one tar by key, while it is read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._images: defaultdict[str, list[str]] = defaultdict(list)
        self._labels: defaultdict[str, list[_Label]] = defaultdict(list)

    def add_image(self, name: str) -> None:
        """Add a member that is an image."""
        self._images[split_name(name)[0]].append(name)

    def add_label(self, name: str, data: bytes) -> Iterator[LeftOut]:
        """Add a member that may hold a label, read up to one byte past the limit; yield what is not used of it."""
        where = printable(f"{self._path}/{name}")
        try:
            if len(data) > MAX_LABEL_BYTES:
                raise UnusableLabel(_TOO_LONG)
            values, has_null = _labels_in_json(data) if ending_of(name) == ".json" else ([_clean(_decoded(data))], False)
        except UnusableLabel as error:
            yield LeftOut(where, str(error))
            return
        if not values:
            yield other_file(where)
        if values and has_null:
            yield LeftOut(where, _NULL)
        for value in values:
            if value == "-1":
                yield LeftOut(where, MINUS_ONE)
            else:
                self._labels[split_name(name)[0]].append(_Label(name, value))

    def assign_labels(self) -> Iterator[LeftOut | TarEnd]:
        """Assign a label to every image, and yield the labels that are left over; raise `BadInput` for ambiguous or conflicting labels."""
        label_of: dict[str, str] = {}
        targets = targets_among([name for images in self._images.values() for name in images])
        for key, labels in self._labels.items():
            images = self._images.get(key, [])
            photos = [name for name in images if name not in targets]
            usable = [label for label in labels if photos and self._belongs(key, label, labels, photos)]
            yield from (LeftOut(printable(f"{self._path}/{label.member}"), _WITHOUT_IMAGE) for label in labels if label not in usable)
            if usable:
                label, is_choice = self._choose(usable)
                if is_choice:
                    yield LeftOut(printable(f"{self._path}/{label.member}"), _NAME_AND_NUMBER)
                label_of.update({f"{self._path}/{name}": label.value for name in images})
        yield TarEnd(label_of, frozenset(f"{self._path}/{name}" for name in targets))

    def _belongs(self, key: str, label: _Label, labels: list[_Label], photos: list[str]) -> bool:
        """Return whether a label belongs to one of a sample's images; raise `BadInput` for several images and labels under one key."""
        middle = split_name(label.member)[1]
        if not middle:
            return True
        if len(photos) == 1:
            _, photo_middle, ending = split_name(photos[0])
            return middle in (photo_middle, f"{photo_middle}.{ending}".lstrip("."))  # `1.left.cls` or `1.left.png.cls`
        members = list(dict.fromkeys(label.member for label in labels))
        raise BadInput(
            f"{self._path}: {_list_members(photos)} and {_list_members(members)} are one sample, {key!r}, because a name is split at its "
            f"first dot, as WebDataset does: {len(photos):,} images, {len(members):,} labels, and nothing says which belongs to which. "
            "Write the tar again with names whose only dot is before the ending (photo_0000.png, photo_0000.cls)"
        )

    def _choose(self, labels: list[_Label]) -> tuple[_Label, bool]:
        """Return the label of a sample, and whether there was another kind; raise `BadInput` where two of a kind differ."""
        by_number = {label.value.lstrip("-").isdecimal(): label for label in labels}
        for label in labels:
            same_kind = by_number[label.value.lstrip("-").isdecimal()]
            if same_kind.value != label.value:
                raise BadInput(
                    f"{self._path}: two labels of one sample differ: {label.member} says {label.value!r}, {same_kind.member} "
                    f"{same_kind.value!r}; correct one of them, or leave it out"
                )
        chosen = min(labels, key=lambda label: LABEL_ENDINGS.index(ending_of(label.member)))
        return chosen, len(by_number) > 1


def _list_members(members: list[str]) -> str:
    return ", ".join(members[:_SHOWN]) + (", …" if len(members) > _SHOWN else "")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableLabel(_UNREADABLE) from None


def _clean(text: str) -> str:
    """Return a label in its stored form: one line of printable characters, not empty, not too long; raise `UnusableLabel`."""
    line = " ".join(text.split())
    if not line or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in line):
        raise UnusableLabel(_UNREADABLE)
    if len(line) > MAX_LABEL_LETTERS:
        raise UnusableLabel(_TOO_LONG)
    return line


def _labels_in_json(data: bytes) -> tuple[list[str], bool]:
    """Return the labels in a .json, and whether one is null; raise `UnusableLabel` for invalid JSON or another type of label."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise UnusableLabel(_UNREADABLE) from None
    labels = [value[key] for key in ("label", "cls") if key in value] if isinstance(value, dict) else []
    return [label_text(label) for label in labels if label is not None], None in labels


def label_text(value: Any) -> str:
    """Return a label of any source in its stored form; raise `UnusableLabel`."""
    return _clean(_as_text(value))


def _as_text(value: Any) -> str:
    """Return a label of any type as text; 1 and 1.0 give the same."""
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)
    if not isinstance(value, (str, bool, int)):
        raise UnusableLabel(_UNREADABLE)
    return str(value)
