"""Check before anything is computed that two splits can give a figure: classes that can be wrong, test images that were not trained on.

With one class every answer is right, so 100 % means nothing: refused. A class that is tested and has no training image is always wrong,
and a test of one class is easily all right: both are warnings, because such a figure may be wanted and is easily misread. A class that is
learnt and not tested is a note. A tested one that the training set does not even name is refused, for labels are matched by name.

A test image that was learnt from is its own neighbour or was fitted, so its answer shows memory. It is found by the sha256 of its bytes,
whatever the files, folders, tars or datasets are called. Published test sets hold a few (CIFAR-10 and ImageNet do): below a thousandth they
cannot move a figure by what one decimal shows, so they are a warning and recorded; more are refused, unless the user allows them. Limits:
an image that was encoded again or cropped has other bytes and is not found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.annotations.layout_report import LayoutReport
from ...storage.annotations.pair_layout import class_folders
from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import drawn_images
from ...storage.store import FeatureStore
from ...student.export.lineage import read_record, recorded_share
from .labelled_features import TEST_FOLDERS, TRAIN_FOLDERS, ClassifiedOptions, Split, labels_as
from .pooled_features import present_images

MOST_SHARED = 0.001
_ROWS_AT_ONCE = 65_536
_NAMED = 3


def shared_indices(learnt: Iterable[bytes], tested: Sequence[bytes]) -> list[int]:
    """Return the indices into `tested` whose digest is among the `learnt` ones."""
    shared = set(tested).intersection(learnt)
    return [index for index, digest in enumerate(tested) if digest in shared]


def digests_of(dataset: ImageDataset, images: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[bytes]:
    """Yield the sha256 of each image's bytes in index order; only of `images`, in rising order, or of all that were not removed."""
    chosen = None if images is None else np.asarray(images)
    if chosen is None and dataset.removed_count:
        chosen = np.setdiff1d(np.arange(len(dataset)), dataset.removed())
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(dataset))
        digests = dataset.sha256s(start, stop)
        if chosen is None:
            yield from digests
        else:
            yield from (digests[image - start] for image in chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)])


def distilled_on(store: FeatureStore, run: Path) -> dict[ImageDataset, NDArray[np.int64] | None]:
    """Return which images a run learnt from, as far as a store holds its views: None for all of a dataset; {} for what is no run."""
    record, share = read_record(run, "identities.json"), recorded_share(run)
    datasets = [store.view_set(key).dataset for key in record.get("views", []) if key in store.list_view_sets()]
    subsets = {key: store.subset(name) for key, name in record.get("subsets", {}).items() if name in store.list_subsets()}
    return {dataset: drawn_images(dataset, subsets.get(dataset.key), share) for dataset in datasets}


def check_overlap(
    learnt: Iterable[bytes], tested: Sequence[bytes], name_of: Callable[[int], str], *, where: str, allowed: bool,
    on_event: Callable[[dict[str, Any]], None],
) -> int:  # fmt: skip
    """Return how many tested images were learnt from; warns when there are any, raises `BadInput` above MOST_SHARED unless `allowed`.

    `name_of` gives the name of an index into `tested`; `where` says what was learnt from and tested on.
    """
    indices = shared_indices(learnt, tested)
    if not indices:
        return 0
    names = ", ".join(name_of(index) for index in indices[:_NAMED]) + (", …" if len(indices) > _NAMED else "")
    text = f"{len(indices):,} of {len(tested):,} test images are also learnt from, by their bytes ({names}): {where}"
    if not allowed and len(indices) > MOST_SHARED * len(tested):
        raise BadInput(f"{text}. Such a figure measures memory as well; test on other images, or say --allow-overlap")
    on_event({"event": "warning", "text": f"{text}; the figure measures memory as well"})
    return len(indices)


def classified_layout(options: ClassifiedOptions) -> LayoutReport:
    """Return what a training and a test set lack, both in one report; no model is opened and no store written."""
    if options.data is not None and options.train_set is None and options.test_set is None:
        sets = [(split, _split_below(Path(options.data), names)) for split, names in (("train", TRAIN_FOLDERS), ("test", TEST_FOLDERS))]
    else:
        sets = list(zip(("train", "test"), options.datasets(), strict=True))
    report = LayoutReport("labelled pictures", " and ".join(name for _, name in sets))
    learnt, tested = (labelled_layout(report, split, name, options.store) for split, name in sets)
    if learnt and tested:
        do = "give both splits the same classes, or take these folders away"
        report.files("classes are tested and have no folder of training pictures", tested - learnt, do)
        if untested := sorted(learnt - tested):
            report.found[_UNTESTED] = f"{len(untested):,}: {_first_classes(untested)}"
    return report


def labelled_layout(report: LayoutReport, split: str, name: str, store: str | None) -> set[str]:
    """Add what one labelled set lacks, a folder or a dataset of the store; return its classes, {} where they are not looked into."""
    path = Path(name)
    if path.is_dir():
        return class_folders(report, path, split)
    if path.is_file() or "://" in name:
        report.found[f"{split} source"] = f"{name} (no folder: it is looked into when it is indexed)"
        return set()
    if store is None:
        report.lacks(f"{name}, which is no folder", "give a folder that holds a folder a class, or a dataset's name with --store")
        return set()
    try:
        dataset = FeatureStore.open(store).dataset(name)
    except EupeError as error:
        report.lacks(str(error), "give a folder that holds a folder a class, or a dataset of the store")
        return set()
    report.count(f"{split} pictures", len(dataset), None, "index the source again")
    if not dataset.label_names:
        report.lacks(f"{dataset.key} has no labels", "index a source whose folders or fields name the class of each image")
    return set(dataset.label_names)


def _split_below(root: Path, names: Sequence[str]) -> str:
    return str(next((root / name for name in names if (root / name).is_dir()), root / names[0]))


_NAMED_CLASSES = 5
_UNTESTED = "classes that are trained and not tested"


def _first_classes(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_CLASSES]) + (", …" if len(names) > _NAMED_CLASSES else "")


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
    """Tell of classes that make a figure easy to misread; raises `BadInput` for one class, none, and images without a label."""
    names = train.dataset.label_names
    learnt, tested = labels_as(train.dataset, names)[train.images], labels_as(test.dataset, names)[test.images]
    if names and min(learnt.min(), tested.min()) < 0:
        raise BadInput("an evaluation needs a label for every image of both sets; index a source whose folders or fields name the class")
    known = sorted(set(learnt.tolist()))
    refuse_one_class(train.dataset, [names[label] for label in known] if names else [])
    if absent := sorted(set(tested.tolist()) - set(known)):
        text = f"{len(absent)} tested classes have no training image, so all of their images are classified wrong"
        on_event({"event": "warning", "text": f"{text}: {_first_classes([names[label] for label in absent])}"})
    testable = labels_as(test.dataset, names)[present_images(test.dataset)]  # what only a sample misses is no remark
    if untested := sorted(set(known) - set(testable.tolist())):
        text = f"{len(untested)} classes are trained and not tested, so the figure says nothing of them"
        on_event({"event": "note", "text": f"{text}: {_first_classes([names[label] for label in untested])}"})
    if len(set(tested.tolist())) == 1:
        only = names[int(tested[0])]
        on_event(
            {"event": "warning", "text": f"all tested images of {test.dataset.key} are of one class, {only!r}: the figure is its alone"}
        )
