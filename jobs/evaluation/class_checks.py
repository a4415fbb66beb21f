"""Check before anything is computed that the labels of an evaluation can give a figure at all.

With one class every answer is right, so 100 % means nothing: refused. A class that is tested and has no training image is always wrong,
and a test of one class is easily all right: both are warnings, because such a figure may be wanted and is easily misread.
"""

from collections.abc import Sequence

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from .labelled_features import Split, labels_as

_NAMED = 5


def refuse_one_class(dataset: ImageDataset, classes: Sequence[str]) -> None:
    """Raise `BadInput` unless there are two classes among which one can be wrong."""
    if len(classes) == 1:
        raise BadInput(
            f"{dataset.key} holds one class only ({classes[0]!r}), so every answer is right and 100 % means nothing; "
            "give a dataset with a folder for each of two classes or more"
        )
    if not classes:
        raise BadInput(f"{dataset.key} has no labels; index a source whose folders or fields name the class of each image")


def check_classes(train: Split, test: Split, on_event: OnEvent) -> None:
    """Warn of classes that make a figure easy to misread; raises `BadInput` for one class, none, and images without a label."""
    names = train.dataset.label_names
    learnt, tested = labels_as(train.dataset, names)[train.images], labels_as(test.dataset, names)[test.images]
    if names and min(learnt.min(), tested.min()) < 0:
        raise BadInput("an evaluation needs a label for every image of both sets; index a source whose folders or fields name the class")
    known = sorted(set(learnt.tolist()))
    refuse_one_class(train.dataset, [names[label] for label in known] if names else [])
    if absent := sorted(set(tested.tolist()) - set(known)):
        shown = ", ".join(names[label] for label in absent[:_NAMED]) + (", …" if len(absent) > _NAMED else "")
        text = f"{len(absent)} tested classes have no training image, so all of their images are classified wrong: {shown}"
        on_event({"event": "warning", "text": text})
    if len(set(tested.tolist())) == 1:
        only = names[int(tested[0])]
        on_event(
            {"event": "warning", "text": f"all tested images of {test.dataset.key} are of one class, {only!r}: the figure is its alone"}
        )
