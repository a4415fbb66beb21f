"""k-nearest-neighbour evaluation: of a run, an export or a teacher over two datasets, or of two cached feature sets.

All three protocols (paper, official, ours) and both features (class token and mean patch token) come out of one pass. A model sees the
centre crop at its own input size, or at `size_px`. A limit takes a keyed random sample of the images, the same for every model, so that
sorted folders do not give one class only. `evaluate_knn` is the command's function: it records its result under the digest of everything
that decides it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.core.errors import CacheMismatch, StoreUnavailable
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, size_json, size_text
from ...student.heads.kept import head_path
from ...student.probes.evaluation_records import find_record, record_path, write_record
from ...student.probes.knn import OFFICIAL_KS, OFFICIAL_TEMPERATURE, PAPER_K, PAPER_SIZE_PX, Embeddings
from ...student.probes.knn import knn as nearest_neighbours
from ...teachers.registry.resolve import load_teacher, resolve_teacher
from ...teachers.runtime.devices import choose_device
from .labelled_features import (
    WHOLE,
    ClassifiedOptions,
    EvaluationSize,
    Int64s,
    Split,
    cached_images,
    embed_images,
    failed_counts,
    labels_as,
    open_data,
    open_store,
    read_embeddings,
    read_upright,
    sample_images,
    warn_upright,
)
from .models import CachedModel, Model, cached_features_of, open_evaluated
from .split_checks import check_classes, check_overlap, classified_layout, digests_of, distilled_on, shared_indices

__all__ = [
    "EvaluationSize", "KnnOptions", "cached_features_of", "compare", "embed_images", "evaluate_knn", "evaluated", "knn_of_features",
    "knn_of_model", "labels_as", "mean_patch_name", "read_embeddings", "sample_images", "splits_of",
]  # fmt: skip


PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {"k": PAPER_K, "distance": "L2", "normalised": False, "votes": "majority"},
    "official": {"ks": list(OFFICIAL_KS), "temperature": OFFICIAL_TEMPERATURE},
    "ours": {"k": PAPER_K, "distance": "cosine", "votes": "majority"},
}  # of kNN; a record without "ours" is older, and what it calls "paper" is ours


def evaluated(
    evaluation: str, model: Model | CachedModel, protocol: dict[str, Any], compute: Callable[[], dict[str, Any]], on_event: OnEvent,
    *, keeps_head: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the results of a protocol: from its record when there is one, else computed and recorded.

    Returns the results with `model`, `seconds`, `record` (the file) and `already`. With `keeps_head` a record alone is not enough: without
    its head the evaluation is made again; `compute` then writes the head before the record is written. The result has its file as `head`.
    """
    full_protocol = {**protocol, "model": model.identity}
    record, path = find_record(model.folder, evaluation, full_protocol), record_path(model.folder, evaluation, full_protocol)
    if keeps_head and record is not None and not head_path(path).is_file():
        on_event({"event": "note", "text": f"{path} has no head beside it, so it is evaluated again to keep one (--no-keep-head does not)"})
        record = None
    already = record is not None
    if record is not None:
        _repeat_failed(record["results"], on_event)
    else:
        on_event({"event": evaluation, "model": model.name})
        started = time.perf_counter()
        results = compute()
        seconds = time.perf_counter() - started
        try:
            record = write_record(model.folder, evaluation, full_protocol, results, seconds)
        except StoreUnavailable as error:
            on_event({"event": "warning", "text": f"the result is not kept, only shown: {error}; --out names another folder"})
            return {"model": model.name, **results, "seconds": round(seconds, 3), "record": None, "already": False}
    head = {"head": str(head_path(path))} if head_path(path).is_file() else {}
    return {"model": model.name, **record["results"], "seconds": record["seconds"], "record": str(path), **head, "already": already}


def _repeat_failed(results: Mapping[str, Any], on_event: OnEvent) -> None:
    """Warn again of images that a recorded result left out."""
    for key in ("train_images", "test_images", "images"):
        if failed := results.get(f"{key}_failed", 0):
            text = f"{failed:,} of {failed + results[key]:,} {key.replace('_', ' ')} have no tokens and were left out of this result"
            on_event({"event": "warning", "text": text})


def splits_of(options: ClassifiedOptions, on_event: OnEvent) -> tuple[Model | CachedModel, Split, Split]:
    """Return the model, the training and the test split; raises `BadInput` for classes or images that cannot give a figure."""
    names, store = options.datasets(), open_store(options.store)
    model = open_evaluated(
        options.model, store, size_px=options.size_px, weights=options.weights, out=options.out,
        allow_random_weights=options.allow_random_weights,
    )  # fmt: skip
    train, test = (open_data(store, name, on_event) for name in names)
    train_split = Split(model, store, train, options, options.train_images, "train")
    test_split = Split(model, store, test, options, options.test_images, "test")
    check_classes(train_split, test_split, on_event)
    return model, train_split, test_split


def images_in_both(train: Split, test: Split, allowed: bool, on_event: OnEvent) -> int:
    """Return how many test images are training images as well; raises `BadInput` for more than a few, unless they are `allowed`."""
    images = test.images
    digests = list(digests_of(test.dataset, images.tolist()))
    say_distilled_on(test, digests, on_event)
    return check_overlap(
        digests_of(train.dataset, train.images.tolist()), digests,
        lambda index: test.dataset.row(int(images[index])).id, where=f"{train.dataset.key} is learnt from, {test.dataset.key} tested on",
        allowed=allowed, on_event=on_event,
    )  # fmt: skip


def say_distilled_on(test: Split, digests: Sequence[bytes], on_event: OnEvent) -> None:
    """Say how many of the tested images the evaluated run was distilled on, as far as this store holds its views.

    It never saw their labels, so that is no refusal; it saw the images, which a figure on new ones would not have in common.
    """
    drawn = distilled_on(test.store, Path(test.model.name)) if isinstance(test.model, Model) else {}
    if shared := shared_indices((digest for dataset, images in drawn.items() for digest in digests_of(dataset, images)), digests):
        names = ", ".join(dataset.key for dataset in drawn)
        text = f"{len(shared):,} of {len(digests):,} test images are among those that {test.model.name} was distilled on ({names})"
        on_event({"event": "note", "text": f"{text}; it never saw their labels"})


@dataclass(frozen=True, kw_only=True)
class KnnOptions(ClassifiedOptions):
    """A kNN evaluation: of which model, over which datasets."""


def evaluate_knn(options: KnnOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return kNN accuracy of a model (see `open_evaluated`): neighbours from one dataset, queries from the other; kept in its folder.

    Accuracies in percent by the paper's protocol, the official one and ours.
    """
    if options.check:
        return classified_layout(options).result()
    model, train, test = splits_of(options, on_event)
    in_both = images_in_both(train, test, options.allow_overlap, on_event)
    upright = read_upright(train, test)
    warn_upright(model, upright, "the figures named paper and official are left out", on_event)
    protocol = {"train": train.protocol(), "test": test.protocol(), **({"ours": PROTOCOLS["ours"]} if upright else PROTOCOLS)}
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": protocol}

    def compute() -> dict[str, Any]:
        names = train.dataset.label_names
        bank, queries = train.features(names, on_event), test.features(names, on_event)
        device = choose_device(options.device).value
        results = compare(bank.embeddings, bank.labels, queries.embeddings, queries.labels, device=device, on_event=on_event)
        if isinstance(model, CachedModel):
            readers = [model.over(split.dataset.digest) for split in (train, test)]
            results[mean_patch_name(*readers)] = results.pop("mean_patch")
            results = {"train": readers[0].key, "test": readers[1].key, **results}
        remarks = upright or differences(test.size_px)
        return {
            "size_px": size_json(test.size_px),
            **remarks,
            "test_images_in_train": in_both,
            **failed_counts(train=bank.failed, test=queries.failed),
            **(ours_alone(results) if upright else results),
        }

    return evaluated("knn", model, protocol, compute, on_event)


def differences(size_px: SizePx) -> dict[str, Any]:
    """Return in what a run's images differ from those of the paper, which classifies at 224 px; {} when they do not."""
    text = f"the input is {size_text(size_px)} px, the paper's {PAPER_SIZE_PX}; --size {PAPER_SIZE_PX} measures as it does"
    return {"differs_from_paper": [text]} if size_px != PAPER_SIZE_PX else {}


def ours_alone(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `compare` without those by published protocols, which read images as stored."""
    return {name: {"ours": figures["ours"]} if isinstance(figures, Mapping) else figures for name, figures in results.items()}


def knn_of_model(store: FeatureStore, model: str, train: str, test: str, size: EvaluationSize = WHOLE) -> dict[str, Any]:
    """Return kNN percent of a run folder or a teacher by protocol and feature over two datasets of the store; nothing is recorded."""
    started = time.perf_counter()
    teacher = load_teacher(resolve_teacher(model, size_px=size.size_px), choose_device(size.device).value)
    bank, queries = (store.dataset(name).read_as("stored") for name in (train, test))
    images_of = sample_images(bank, size.train_images, "train"), sample_images(queries, size.test_images, "test")
    embeddings = [embed_images(teacher, dataset, images, size) for dataset, images in zip((bank, queries), images_of, strict=True)]
    result = compare(embeddings[0], bank.labels()[images_of[0]], embeddings[1], labels_as(queries, bank.label_names)[images_of[1]])
    size_px = size_json(teacher.spec.preprocessing.size_px)
    return {"model": model, "size_px": size_px, **result, "seconds": time.perf_counter() - started}


def knn_of_features(
    store: FeatureStore, train: str, test: str, size: EvaluationSize = WHOLE, on_event: OnEvent = ignore_event
) -> dict[str, Any]:
    """Return kNN percent of a teacher from its cached tokens; `train` and `test` are its feature sets. Nothing is recorded.

    Of tokens of images that were turned upright only our protocol is measured: the others read images as stored. Images without tokens are
    left out, warned of and counted.
    """
    started = time.perf_counter()
    bank, queries = store.features(train), store.features(test)
    if bank.identity["teacher"] != queries.identity["teacher"]:
        raise CacheMismatch(f"{bank.key} and {queries.key} were made by different teachers; compare tokens of one teacher")
    purposes = ((bank, size.train_images, "train"), (queries, size.test_images, "test"))
    images_of, failed = zip(*(cached_images(*asked, on_event) for asked in purposes), strict=True)
    embeddings = [read_embeddings(reader, images) for reader, images in zip((bank, queries), images_of, strict=True)]
    names = bank.views.dataset.label_names
    labels = [labels_as(reader.views.dataset, names)[images] for reader, images in zip((bank, queries), images_of, strict=True)]
    result = compare(embeddings[0], labels[0], embeddings[1], labels[1])
    if any(reader.views.dataset.orientation != "stored" for reader in (bank, queries)):
        result = ours_alone(result)
    result[mean_patch_name(bank, queries)] = result.pop("mean_patch")
    counts = failed_counts(train=failed[0], test=failed[1])
    return {"train": bank.key, "test": queries.key, **counts, **result, "seconds": time.perf_counter() - started}


def mean_patch_name(*readers: FeatureReader) -> str:
    """Return the result key of the mean over stored patch tokens: an approximation has its own, so that nobody compares it unawares."""
    layouts = [reader.layout for reader in readers]
    sampled = "_sampled" if any(layout.tokens_per_view is not None for layout in layouts) else ""
    resampled = "_resampled" if any(layout.resampled_from is not None for layout in layouts) else ""
    return f"mean{sampled}{resampled}_patch"


def compare(
    bank: Embeddings, bank_labels: Int64s, queries: Embeddings, query_labels: Int64s, *, device: str = "cpu",
    on_event: OnEvent = ignore_event,
) -> dict[str, Any]:  # fmt: skip
    """Return `{"cls": {"paper": %, "ours": %, "official": {"10": %, …}}, "mean_patch": {…}, "train_images": N, "test_images": N}`."""
    result: dict[str, Any] = {"train_images": len(bank_labels), "test_images": len(query_labels)}
    if cut := [k for k in sorted({PAPER_K, *OFFICIAL_KS}) if k > len(bank_labels)]:
        text = f"k of {', '.join(map(str, cut))} is above the {len(bank_labels)} training images and becomes {len(bank_labels)}"
        on_event({"event": "note", "text": f"{text}, as in the official code"})
    pairs = {"cls": (bank.cls_ND, queries.cls_ND), "mean_patch": (bank.mean_patch_ND, queries.mean_patch_ND)}
    for feature, (train_ND, test_ND) in pairs.items():
        if train_ND is None or test_ND is None:
            continue
        event = {"event": "progress", "stage": f"neighbours by {feature}", "total": len(test_ND), "unit": "images"}

        def on_done(done: int, event: dict[str, Any] = event) -> None:
            on_event({**event, "done": done})

        accuracy = nearest_neighbours(train_ND, bank_labels, test_ND, query_labels, device=device, on_done=on_done)
        result[feature] = accuracy.figures()
    return result
