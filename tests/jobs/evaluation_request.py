"""Evaluations of tests: a model and the datasets of an open store become one request."""

from pathlib import Path
from typing import Any

from eupe_pipeline.jobs.evaluation import knn, linear, zero_shot
from eupe_pipeline.jobs.evaluation.labelled_features import WHOLE, EvaluationSize
from eupe_pipeline.storage.core.events import OnEvent, ignore_event
from eupe_pipeline.storage.store import FeatureStore


def evaluate_knn(
    model: str, store: FeatureStore, train_set: str, test_set: str, *, size: EvaluationSize = WHOLE, on_event: OnEvent = ignore_event,
    **values: Any,
) -> dict[str, Any]:  # fmt: skip
    """`values`: further fields of KnnOptions."""
    options = knn.KnnOptions(**vars(size), model=model, store=store.url, train_set=train_set, test_set=test_set, **values)
    return knn.evaluate_knn(options, on_event)


def evaluate_linear(
    model: str, store: FeatureStore, train_set: str, test_set: str, *, size: EvaluationSize = WHOLE, on_event: OnEvent = ignore_event,
    **values: Any,
) -> dict[str, Any]:  # fmt: skip
    """`values`: further fields of LinearOptions."""
    options = linear.LinearOptions(**vars(size), model=model, store=store.url, train_set=train_set, test_set=test_set, **values)
    return linear.evaluate_linear(options, on_event)


def evaluate_zero_shot(
    model: str, store: FeatureStore, data: str, text: Path, classes: Path | None = None, teacher: str | None = None
) -> dict[str, Any]:
    """Classify by the texts of a tower's folder."""
    options = zero_shot.ZeroShotOptions(model=model, store=store.url, data=data, text=text, classes=classes, teacher=teacher)
    return zero_shot.evaluate_zero_shot(options)
