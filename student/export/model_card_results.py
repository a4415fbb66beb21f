"""Evaluation records as entries of the Hub's `model-index`: one task, dataset and metric a figure.

The Hub knows tasks, datasets and metrics, but no protocols, and a figure means nothing without one. So each metric has its protocol in its
name and in its arguments (`paper`, `official` or `ours`), with what differs from it; percents are said to be percents. Dense evaluations
record digests of their pictures and no name, so their dataset is named by its digest. What somebody gave to the export without a protocol
stands in the card's text alone, as do evaluations without a `HubTask` in their row. Limit: the Hub groups by task, dataset and split; what
one group shares must not differ inside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub.repocard_data import EvalResult

from ...storage.core.identity import short
from .hub_task import HubTask

Record = Mapping[str, Any]
PROTOCOLS = ("paper", "official", "ours")
HUB_DATASETS = {
    "imagenet-1k": "ILSVRC/imagenet-1k",
    "imagenet1k": "ILSVRC/imagenet-1k",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
"""Ids of public datasets on the Hub by the names that people give them here; any other name is nobody's but the user's."""


def is_record(evaluation: Mapping[str, Any]) -> bool:
    """Return whether a JSON result is the record of an evaluation: a figure with its protocol."""
    return {"evaluation", "protocol", "results"} <= evaluation.keys()


def eval_results(evaluations: Sequence[Mapping[str, Any]], tasks: Mapping[str, HubTask]) -> list[EvalResult]:
    """Return the figures of evaluations, in their order; what is no record, has no task or is of unnamed images gives none."""
    records = [evaluation for evaluation in evaluations if is_record(evaluation) and evaluation["evaluation"] in tasks]
    return [
        result
        for record in records
        if (images := _dataset(record["protocol"]))
        for result in _of_record(record, images, tasks[record["evaluation"]])
    ]


def _of_record(record: Record, images: Mapping[str, Any], task: HubTask) -> Iterator[EvalResult]:
    """Yield the figures of one record; `images` has the fields of EvalResult that name what was tested."""
    figures = _figures_by_feature(record["results"]) if task.accuracies_by_feature else _plain_figures(task, record)
    for kind, name, protocol, value, details in figures:
        differs = record["results"].get(f"differs_from_{protocol}")
        arguments = {"protocol": protocol, **_learnt_from(record["protocol"]), **details, **({"differs": differs} if differs else {})}
        yield EvalResult(
            task_type=task.id, task_name=task.name, **images, metric_type=kind, metric_value=value, metric_args=arguments,
            metric_name=f"{task.method}, {name}, by {'our' if protocol == 'ours' else f'the {protocol}'} protocol",
        )  # fmt: skip


_Figure = tuple[str, str, str, float, dict[str, Any]]  # metric type, name, protocol, value, further arguments


def _plain_figures(task: HubTask, record: Record) -> Iterator[_Figure]:
    """Yield the figures of an evaluation that has one protocol a record."""
    protocol = str(record["protocol"].get("name", "ours"))  # a record without a name is ours
    feature = {"feature": record["results"]["feature"]} if "feature" in record["results"] else {}
    for key, (kind, name) in task.metrics.items():
        if key in record["results"]:
            yield kind, name, protocol, record["results"][key], feature


def _figures_by_feature(results: Record) -> Iterator[_Figure]:
    """Yield figures such as kNN's: each feature by all three protocols, the official one with a figure for each k."""
    for feature, by_protocol in results.items():
        for protocol in PROTOCOLS if isinstance(by_protocol, Mapping) else ():
            value = by_protocol.get(protocol)
            for k, percent in value.items() if isinstance(value, Mapping) else [(None, value)] if value is not None else []:
                with_k = f"k = {k}, " if k is not None else ""
                name = f"{with_k}{feature.replace('_', ' ')} feature, top-1 accuracy (%)"
                yield "accuracy", name, protocol, percent, {"feature": feature, **({"k": int(k)} if k is not None else {})}


def _dataset(protocol: Record) -> dict[str, Any]:
    """Return the tested images as fields of EvalResult: a dataset by name, a folder's images by digest; {} where none are recorded."""
    test, data = (value if isinstance(value, Mapping) else {} for value in (protocol.get("test"), protocol.get("data")))
    if "dataset" in test:
        name = str(test["dataset"]).split("@")[0]
        return {"dataset_name": name, "dataset_type": HUB_DATASETS.get(name, name), "dataset_revision": str(test["digest"])}
    described = {"split": "val", **data["val"]} if "val" in data else data
    if "digest" not in described:
        return {}
    count = f"{described['pictures']} pictures" if "pictures" in described else f"{described['pairs']} pairs"
    title = f"{count} of a folder, digest {short(described['digest'])}"
    return {
        "dataset_name": title, "dataset_type": "local", "dataset_split": str(described["split"]), "dataset_revision": described["digest"],
    }  # fmt: skip


def _learnt_from(protocol: Record) -> dict[str, str]:
    """Return the images that a probe learnt from or that are the neighbours, {} where none are recorded."""
    return {"train": protocol["train"]["dataset"]} if isinstance(protocol.get("train"), Mapping) else {}
