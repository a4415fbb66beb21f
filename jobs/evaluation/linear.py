"""The linear probe of a model or of cached tokens over two labelled datasets; see `student.probes.linear`.

    FOLDER/evaluations/linear-<digest12>.partial.json         the sweep so far: a stopped probe goes on at its next value
    FOLDER/evaluations/linear-<digest12>.head.safetensors     the probe (`student.heads.kept`)

Class tokens are probed; a teacher without any is probed on its mean patch tokens, and the result says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...student.heads.kept import KeptHead, head_path, keep_head
from ...student.probes.evaluation_records import PARTIAL, record_path, to_strict_json, write_partial
from ...student.probes.linear import POWERS, VALIDATION_SHARE, Probe, fit, sweep
from ...teachers.runtime.devices import choose_device
from .knn import evaluated, images_in_both, splits_of
from .labelled_features import ClassifiedOptions, LabelledSplit, failed_counts, read_upright, warn_upright
from .models import CachedModel, Model
from .split_checks import classified_layout


@dataclass(frozen=True, kw_only=True)
class LinearOptions(ClassifiedOptions):
    """A linear probe: of which model, over which datasets, and how it is fitted."""

    seed: int = 0
    """Of the tenth of the training images on which the probe's strength is chosen."""
    powers: tuple[float, ...] = POWERS
    """Exponents of 10 that are tried for C, the inverse of the weight decay."""
    keep_head: bool = True
    """Keep the probe beside its record, so that `export --head` can take it along."""


def evaluate_linear(options: LinearOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return top-1 accuracy in percent on the test set, the chosen C, and validation accuracy by C; kept in the model's folder."""
    if options.check:
        return classified_layout(options).result()
    seed, powers = options.seed, options.powers
    model, train, test = splits_of(options, on_event)
    in_both = images_in_both(train, test, options.allow_overlap, on_event)
    feature = "cls" if model.identity["cls_dim"] is not None else "mean_patch"
    protocol = {
        "train": train.protocol(), "test": test.protocol(), "feature": feature, "powers_of_c": list(powers), "seed": seed,
        "validation": VALIDATION_SHARE, "solver": "L-BFGS, float64, weight decay 1/C, bias free, fitted again on all training images",
    }  # fmt: skip
    upright = read_upright(train, test)
    warn_upright(model, upright, "the figure is not the published protocol's", on_event)
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": protocol}
    partial = record_path(model.folder, "linear", {**protocol, "model": model.identity}).with_suffix(PARTIAL)

    def compute() -> dict[str, Any]:
        names, device = train.dataset.label_names, choose_device(options.device).value
        splits = [split.features(names, on_event) for split in (train, test)]
        bank, queries = (_tensors(split, feature, device) for split in splits)
        probe, result = _probe(bank, queries, len(names), powers, seed, partial, on_event)
        counts = {"train_images": len(bank[1]), "test_images": len(queries[1]), "test_images_in_train": in_both, "classes": len(names)}
        counts |= failed_counts(train=splits[0].failed, test=splits[1].failed)
        results = {**counts, **upright, "feature": feature, **result}
        if options.keep_head:
            head = _head(probe, feature, model, {**protocol, "model": model.identity}, names, results, options)
            keep_head(head_path(record_path(model.folder, "linear", head.protocol)), head, on_event)
        partial.unlink(missing_ok=True)
        return results

    return evaluated("linear", model, protocol, compute, on_event, keeps_head=options.keep_head)


def _head(
    probe: Probe, feature: str, model: Model | CachedModel, protocol: dict[str, Any], names: list[str], results: dict[str, Any],
    options: LinearOptions,
) -> KeptHead:  # fmt: skip
    """Return the probe as it is kept: in float64, with the classes' names in their order."""
    outputs, width = probe.weight_KD.shape
    prep = model.identity["preprocessing"]
    cached = {"features": [protocol[split]["features"] for split in ("train", "test")]} if isinstance(model, CachedModel) else {}
    share = "" if options.crop_fraction == 1 else f" of {options.crop_fraction:g} of the shorter side"
    rule = f"the central square{share}, resized to {prep['size_px']} px ({prep['interpolation']})"
    described = {"size_px": prep["size_px"], "crop_fraction": options.crop_fraction, **cached, "rule": rule}
    tensors = {"linear.weight": probe.weight_KD, "linear.bias": probe.bias_K}
    settings = {"feature": feature, "width": width, "outputs": outputs}
    return KeptHead("linear", model.identity, protocol, settings, described, tuple(names), results, tensors)


Labelled = tuple[Tensor, Tensor]


def _tensors(split: LabelledSplit, feature: str, device: str) -> Labelled:
    if split.labels.min(initial=0) < 0:
        raise BadInput("a linear probe needs a label for every image; index a source whose folders or fields name the class")
    features = split.embeddings.cls_ND if feature == "cls" else split.embeddings.mean_patch_ND
    assert features is not None
    return torch.from_numpy(features).to(device), torch.from_numpy(split.labels).to(device)


def _probe(
    bank: Labelled, queries: Labelled, classes: int, powers: Sequence[float], seed: int, partial: Path, on_event: OnEvent
) -> tuple[Probe, dict[str, Any]]:
    def keep(accuracies: dict[str, float]) -> None:
        write_partial(partial, lambda: to_strict_json(accuracies, "linear probe"), on_event)
        on_event({"event": "progress", "stage": "linear probe", "done": len(accuracies), "total": len(powers), "unit": "fits"})

    known = json.loads(partial.read_text()) if partial.is_file() else {}
    chosen = sweep(*bank, classes, powers=powers, seed=seed, known=known, on_value=keep)
    probe = fit(bank[0].double(), bank[1], classes, 10.0**chosen.power)
    results = {
        "top1": probe.percent_right(queries[0].double(), queries[1]),
        "validation_top1": chosen.accuracies[f"{chosen.power:g}"],
        "c": 10.0**chosen.power,
        "validation_by_power": chosen.accuracies,
    }
    return probe, results
