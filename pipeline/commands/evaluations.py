"""What the `evaluate` commands do, without the command line: typed values in, a JSON-able result out.

Usable from a notebook as it is. Heavy imports stay inside the functions, as in `actions`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent


def datasets_of(data: str | None, train_set: str | None, test_set: str | None) -> tuple[str, str]:
    """The names or sources of the training and the test set: given one by one, or as a folder that holds both."""
    from ...jobs.evaluation.labelled_features import split_folders

    if data is not None and train_set is None and test_set is None:
        return split_folders(data)
    if data is None and train_set is not None and test_set is not None:
        return train_set, test_set
    raise BadInput("give --train and --test, or --data with a folder that holds train/ and val/, and not both")


def knn(*, model: str, store: str | None, data: str | None = None, train_set: str | None, test_set: str | None, weights: Path | None = None,
        out: Path | None = None, dry_run: bool = False, on_event: OnEvent, **size: Any) -> Mapping[str, Any]:  # fmt: skip
    """Return the model's kNN accuracies in percent, by the paper's protocol, the official one and ours; `size`: EvaluationSize's fields."""
    from ...jobs.evaluation.knn import EvaluationSize, evaluate_knn
    from ...jobs.evaluation.labelled_features import open_store

    train, test = datasets_of(data, train_set, test_set)
    return evaluate_knn(
        model, open_store(store), train, test, size=EvaluationSize(**size), weights=weights, out=out, dry_run=dry_run, on_event=on_event
    )


def linear(*, model: str, store: str | None, data: str | None, train_set: str | None, test_set: str | None, weights: Path | None,
           out: Path | None, seed: int, dry_run: bool, on_event: OnEvent, **size: Any) -> Mapping[str, Any]:  # fmt: skip
    """Return the linear probe's top-1 accuracy in percent."""
    from ...jobs.evaluation.knn import EvaluationSize
    from ...jobs.evaluation.labelled_features import open_store
    from ...jobs.evaluation.linear import evaluate_linear

    train, test = datasets_of(data, train_set, test_set)
    return evaluate_linear(
        model, open_store(store), train, test, size=EvaluationSize(**size), seed=seed, weights=weights, out=out, dry_run=dry_run,
        on_event=on_event,
    )  # fmt: skip


def segmentation(*, model: str, data: Path, classes: int | None, zero_is_ignored: bool | None, ignore: int | None,
                 dataset: str | None = None, on_event: OnEvent, **values: Any) -> Mapping[str, Any]:  # fmt: skip
    """Return mIoU and pixel accuracy in percent; `values`: DenseOptions' fields."""
    from ...jobs.evaluation.dense import DenseOptions
    from ...jobs.evaluation.segmentation import SegmentationOptions, evaluate_segmentation

    own = SegmentationOptions(classes, zero_is_ignored, ignore, dataset)
    return evaluate_segmentation(model, data, DenseOptions(**values), own, on_event)


def depth(*, model: str, data: Path, nyu_crops: bool | None, per_metre: float, on_event: OnEvent, **values: Any) -> Mapping[str, Any]:
    """Return rmse in metres, abs_rel and delta1; `values`: DenseOptions' fields."""
    from ...jobs.evaluation.dense import DenseOptions
    from ...jobs.evaluation.depth import DepthOptions, evaluate_depth

    return evaluate_depth(model, data, DenseOptions(**values), DepthOptions(nyu_crops, per_metre), on_event)


def correspondence(*, model: str, data: Path, split: str, protocol: str = "ours", pairs_per_category: int | None = None,
                   on_event: OnEvent, **values: Any) -> Mapping[str, Any]:  # fmt: skip
    """Return PCK in percent by category; `values`: DenseOptions' fields."""
    from ...jobs.evaluation.correspondence import evaluate_correspondence
    from ...jobs.evaluation.dense import DenseOptions

    return evaluate_correspondence(
        model, data, DenseOptions(**values), split=split, protocol=protocol, pairs_per_category=pairs_per_category, on_event=on_event
    )


def zero_shot(*, model: str, store: str | None, test_set: str, text: Path, classes: Path | None, teacher: str | None, proxy: Path | None,
              weights: Path | None, out: Path | None, dry_run: bool, on_event: OnEvent, **size: Any) -> Mapping[str, Any]:  # fmt: skip
    """Return zero-shot accuracies in percent."""
    from ...jobs.evaluation.knn import EvaluationSize
    from ...jobs.evaluation.labelled_features import open_store
    from ...jobs.evaluation.zero_shot import ZeroShotOptions, evaluate_zero_shot

    options = ZeroShotOptions(text, classes, teacher, proxy, EvaluationSize(**size), weights, out, dry_run)
    return evaluate_zero_shot(model, open_store(store), test_set, options, on_event=on_event)
