"""Find what the masks of a segmentation dataset mean: which values are classes and which is ignored; every mask is read beforehand.

A value is ignored because the user said so (`--ignore-index`, 255 by default, `none` for no value) or because it is ADE20k's 0, never
because of what it is inside this program. Masks of 0 and 255 are the common trap: with 255 ignored one class is left and every model is
right, so that is refused with the option to give. The number of classes is ADE20k's 150, the user's, or the largest training value plus
one. Price: every mask is decoded once more, about 150 a second and thread at ADE20k's sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...storage.annotations.dense_pairs import ADE20K_CLASSES, MaskValues, Pair, is_ade20k, mask_values, read_classes
from ...storage.core.choices import MASK_DATASETS, MaskDataset
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.events import OnEvent
from ...student.probes.segmentation import Mask, to_classes

READ_THREADS = 2
MOST_CLASSES = 4096  # the confusion matrix has so many rows and columns: 134 MB
_NAMED = 8


@dataclass(frozen=True)
class MaskClasses:
    """How stored values become classes from 0."""

    classes: int
    zero_is_ignored: bool
    ignore: int | None

    def read(self, pair: Pair) -> Mask:
        """Read a mask (H, W) as classes from 0 and IGNORE."""
        return to_classes(read_classes(pair.target), self.ignore, self.zero_is_ignored)


def check_masks(
    root: Path, pairs: Mapping[str, list[Pair]], classes: int | None, zero_is_ignored: bool | None, ignore: int | None,
    dataset: MaskDataset | None, on_event: OnEvent,
) -> MaskClasses:  # fmt: skip
    """Return how the masks below `root` are read; raises `BadInput` that names a mask where they cannot give a figure."""
    if dataset is not None and dataset not in MASK_DATASETS:
        raise unknown_name("segmentation dataset", dataset, MASK_DATASETS)
    ade20k = dataset == "ade20k" if dataset is not None else is_ade20k(root, [*pairs["train"], *pairs["val"]])
    zero = ade20k if zero_is_ignored is None else zero_is_ignored
    values_of = {split: mask_values(split_pairs, READ_THREADS) for split, split_pairs in pairs.items()}
    counted = {split: sorted(set(values.pixels) - {ignore} - ({0} if zero else set())) for split, values in values_of.items()}
    _refuse_no_figure(values_of, counted, ignore)
    number = classes or (ADE20K_CLASSES if ade20k and zero else max(counted["train"]) + (0 if zero else 1))
    if number > MOST_CLASSES:
        raise BadInput(f"the training masks hold values up to {max(counted['train'])}, and at most {MOST_CLASSES} classes are measured; "
                       "renumber them from 0, or say --ignore-index")  # fmt: skip
    _refuse_values_that_are_no_class(values_of, counted, number, zero)
    _say(values_of, counted, ade20k, zero, ignore, number, on_event)
    return MaskClasses(number, zero, ignore)


def _refuse_no_figure(values_of: Mapping[str, MaskValues], counted: Mapping[str, list[int]], ignore: int | None) -> None:
    for split, word in (("train", "training"), ("val", "validation")):
        if not counted[split]:
            raise BadInput(f"no pixel of the {word} masks counts: they hold {_listed(values_of[split].pixels)}, all of it ignored; "
                           "say --ignore-index, or --zero-counts when class 0 is one")  # fmt: skip
    if len(counted["train"]) == 1:
        raise BadInput(
            f"the training masks hold one class only, {counted['train'][0]} (their values: {_listed(values_of['train'].pixels)}; ignored: "
            f"{'none' if ignore is None else ignore}), so every answer is right; if the ignored value is a class, say --ignore-index none"
        )


def _refuse_values_that_are_no_class(
    values_of: Mapping[str, MaskValues], counted: Mapping[str, list[int]], number: int, zero_is_ignored: bool
) -> None:
    first = 1 if zero_is_ignored else 0
    for split, values in counted.items():
        if stray := [value for value in values if not first <= value < first + number]:
            raise BadInput(
                f"{values_of[split].example[stray[-1]]} holds class {stray[-1]}, and there are {number}; say --classes (masks count from "
                f"{first}), or --ignore-index for the value that means nothing"
            )


def _say(
    values_of: Mapping[str, MaskValues], counted: Mapping[str, list[int]], ade20k: bool, zero: bool, ignore: int | None, number: int,
    on_event: OnEvent,
) -> None:  # fmt: skip
    ignored = [str(value) for value in ([0] if zero else []) + ([] if ignore is None else [ignore])]
    kind = "ADE20k: " if ade20k else ""
    on_event({"event": "note", "text": f"{kind}{number} classes; ignored in the masks: {', '.join(ignored) or 'nothing'}"})
    if not zero and 0 in values_of["train"].pixels and number == ADE20K_CLASSES + 1:
        text = "the masks hold 0 to 150, as ADE20k's do, whose 0 means nothing; if these are ADE20k's, say --dataset ade20k"
        on_event({"event": "warning", "text": text})
    if unseen := sorted(set(counted["val"]) - set(counted["train"])):
        on_event({"event": "warning", "text": f"no training mask holds the validation masks' classes {_listed(unseen)}"})
    if len(counted["val"]) == 1:
        on_event({"event": "warning", "text": f"the validation masks hold one class only, {counted['val'][0]}"})


def _listed(values: Mapping[int, int] | list[int]) -> str:
    sorted_values = sorted(values)
    return ", ".join(map(str, sorted_values[:_NAMED])) + (", …" if len(sorted_values) > _NAMED else "")
