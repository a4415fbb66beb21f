"""k-nearest-neighbour evaluation: of a run or a teacher over two datasets of a store, or of two cached feature sets.

Both protocols and both features (class token and mean patch token) come out of one pass. A model sees the centre crop at its own input
size, or at `size_px`; cached tokens are de-normalised to the teacher's own space, one view an image (k = 0) for training and test. A
limit takes a keyed random sample of the images, the same for every model, so that sorted folders do not give one class only.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.dataset import ImageDataset
from ..storage.errors import BadInput, CacheMismatch, unknown_name
from ..storage.features import FeatureReader
from ..storage.photometric import SEEN_BY
from ..storage.store import FeatureStore
from ..storage.views import ViewSpec, draw, render
from ..student.devices import choose_device
from ..student.evaluation import PAPER_K, Embeddings, embed, knn_official, knn_paper
from ..student.order import KeyedPermutation
from ..teachers.registry import MODEL_FILE, load_teacher, resolve_teacher
from ..teachers.teacher import Teacher

PROTOCOLS = ("paper", "official")
_READ_ROWS = 256

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationSize:
    """How much is compared, and at what input: None for all images and the model's own size."""

    train_images: int | None = None
    test_images: int | None = None
    size_px: int | None = None
    crop_fraction: float = 1.0
    """Share of the shorter side that the centre crop keeps (0.875 is the official resize 256 → crop 224)."""
    batch_size: int = 128
    device: str = "auto"


def sample_images(dataset: ImageDataset, limit: int | None, purpose: str) -> Int64s:
    """All images, or `limit` of them drawn without replacement, in index order."""
    count = len(dataset)
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(KeyedPermutation(count, 0, f"knn {purpose}", 0)(np.arange(limit)))


def knn(
    model: str,
    store: FeatureStore,
    train_set: str,
    test_set: str,
    *,
    size: EvaluationSize = EvaluationSize(),
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """kNN over two datasets: a run folder goes over the images, any other name stands for the teacher's cached feature sets."""
    on_event({"event": "knn", "model": model, "train": train_set, "test": test_set})
    if (Path(model) / MODEL_FILE).is_file():
        return knn_of_model(store, model, train_set, test_set, size)
    if Path(model).is_dir():
        raise BadInput(f"{model} holds no trained model (no {MODEL_FILE}); finish that run first")
    train, test = (cached_features_of(store, model, store.dataset(name).digest) for name in (train_set, test_set))
    return {"model": model, **knn_of_features(store, train, test, size)}


def cached_features_of(store: FeatureStore, teacher: str, dataset_digest: str) -> str:
    """Key of the only complete feature set of a teacher (name or key) over a dataset; raises `BadInput` for none or several."""
    named = [key for key in store.list_features() if teacher in (key, key.split("@")[0])]
    if not named:
        raise unknown_name(
            f"run folder or teacher with features in {store.url}:", teacher, {k.split("@")[0] for k in store.list_features()}
        )
    readers = [reader for reader in map(store.features, named) if reader.views.dataset.digest == dataset_digest and reader.complete]
    if len(readers) != 1:
        found = ", ".join(reader.key for reader in readers) or "none"
        raise BadInput(
            f"kNN from cached tokens needs one complete feature set of {teacher} over each dataset; over dataset "
            f"@{dataset_digest[:12]} there are {len(readers)}: {found}. Extract it, or give two keys to "
            "`jobs.evaluate.knn_of_features`"
        )
    return readers[0].key


def knn_of_model(store: FeatureStore, model: str, train: str, test: str, size: EvaluationSize = EvaluationSize()) -> dict[str, Any]:
    """kNN of a run folder or a named teacher: `train` and `test` are datasets of the store; percent by protocol and feature."""
    started = time.perf_counter()
    teacher = load_teacher(resolve_teacher(model, size_px=size.size_px), choose_device(size.device).value)
    bank, queries = store.dataset(train), store.dataset(test)
    chosen = sample_images(bank, size.train_images, "train"), sample_images(queries, size.test_images, "test")
    embedded = [embed_images(teacher, one, images, size) for one, images in zip((bank, queries), chosen, strict=True)]
    result = compare(embedded[0], bank.labels()[chosen[0]], embedded[1], labels_as(queries, bank.label_names)[chosen[1]])
    size_px = teacher.spec.preprocessing.size_px
    return {"model": model, "size_px": size_px, **result, "seconds": time.perf_counter() - started}


def knn_of_features(store: FeatureStore, train: str, test: str, size: EvaluationSize = EvaluationSize()) -> dict[str, Any]:
    """kNN of a teacher from its cached tokens: `train` and `test` are feature sets of the store, made by one teacher."""
    started = time.perf_counter()
    bank, queries = store.features(train), store.features(test)
    if bank.identity["teacher"] != queries.identity["teacher"]:
        raise CacheMismatch(f"{bank.key} and {queries.key} were made by different teachers; compare tokens of one teacher")
    chosen = _cached_images(bank, size.train_images, "train"), _cached_images(queries, size.test_images, "test")
    embedded = [read_embeddings(one, images) for one, images in zip((bank, queries), chosen, strict=True)]
    names = bank.views.dataset.label_names
    labels = [labels_as(one.views.dataset, names)[images] for one, images in zip((bank, queries), chosen, strict=True)]
    result = compare(embedded[0], labels[0], embedded[1], labels[1])
    result[mean_patch_name(bank, queries)] = result.pop("mean_patch")
    return {"train": bank.key, "test": queries.key, **result, "seconds": time.perf_counter() - started}


def mean_patch_name(*readers: FeatureReader) -> str:
    """What the mean over stored patch tokens is called: an approximation has a name of its own, so that nobody compares it unawares."""
    layouts = [reader.layout for reader in readers]
    sampled = "_sampled" if any(layout.tokens_per_view is not None for layout in layouts) else ""
    resampled = "_resampled" if any(layout.resampled_from is not None for layout in layouts) else ""
    return f"mean{sampled}{resampled}_patch"


def compare(bank: Embeddings, bank_labels: Int64s, queries: Embeddings, query_labels: Int64s) -> dict[str, Any]:
    """`{"cls": {"paper": %, "official": {"10": %, …}}, "mean_patch": {…}, "train_images": N, "test_images": N}`."""
    result: dict[str, Any] = {"train_images": len(bank_labels), "test_images": len(query_labels)}
    pairs = {"cls": (bank.cls_ND, queries.cls_ND), "mean_patch": (bank.mean_patch_ND, queries.mean_patch_ND)}
    for feature, (train_ND, test_ND) in pairs.items():
        if train_ND is None or test_ND is None:
            continue
        official = knn_official(train_ND, bank_labels, test_ND, query_labels)
        result[feature] = {
            "paper": knn_paper(train_ND, bank_labels, test_ND, query_labels, k=PAPER_K),
            "official": {str(k): percent for k, percent in official.items()},
        }
    return result


def embed_images(teacher: Teacher, dataset: ImageDataset, images: Int64s, size: EvaluationSize) -> Embeddings:
    """Features of some images of a dataset, centre crop, in the given order."""
    return embed(teacher, _center_batches(dataset, images, teacher, size))


def _center_batches(dataset: ImageDataset, images: Int64s, teacher: Teacher, size: EvaluationSize) -> Iterator[NDArray[np.uint8]]:
    spec = ViewSpec(kind="center", crop_fraction=size.crop_fraction)
    preprocessing = teacher.spec.preprocessing
    for start in range(0, len(images), size.batch_size):
        batch = []
        for image in images[start : start + size.batch_size].tolist():
            pixels = dataset.read_image(image)
            crop = draw(spec, dataset.ids(image, image + 1), np.array([pixels.shape[:2]], np.int32)).crop[0]
            batch.append(render(pixels, crop, False, preprocessing.size_px, preprocessing.interpolation))
        yield np.stack(batch)


def _cached_images(reader: FeatureReader, limit: int | None, purpose: str) -> Int64s:
    """The sampled images that have tokens."""
    images = sample_images(reader.views.dataset, limit, purpose)
    return np.setdiff1d(images, reader.failed_rows() // reader.views.views_per_image)


def read_embeddings(reader: FeatureReader, images: Int64s) -> Embeddings:
    """View 0 of each image from a feature set: class tokens and mean patch tokens in the teacher's own space.

    Raises `BadInput` for tokens of distorted views: an evaluation is of what a teacher says about the images themselves.
    """
    if "teacher" in SEEN_BY[reader.views.spec.photometric]:
        raise BadInput(
            f"{reader.key} holds tokens of distorted views (photometric {reader.views.spec.photometric}), which are not evaluated; "
            "extract with --photometric none or student_only, best with --view-kind center"
        )
    rows, statistics = images * reader.views.views_per_image, reader.statistics
    classes, patches = [], []
    for start in range(0, len(rows), _READ_ROWS):
        tokens = reader.read(rows[start : start + _READ_ROWS])
        # The mean commutes with the de-normalisation, which is affine and the same for every token.
        # Of a sampled set it is the mean of the stored tokens: see `mean_patch_name`.
        flat_nND = reader.decode(tokens).reshape(len(tokens.patch), -1, reader.patch_dim)
        patches.append(statistics.denormalize_patch(flat_nND.mean(axis=1)))
        if tokens.cls is not None:
            classes.append(statistics.denormalize_cls(tokens.cls.astype(np.float32)))
    return Embeddings(np.concatenate(classes) if classes else None, np.concatenate(patches))


def labels_as(dataset: ImageDataset, names: list[str]) -> Int64s:
    """The dataset's labels as indexes into `names`, −1 for none; raises `BadInput` for a label that `names` lacks."""
    if stray := sorted(set(dataset.label_names) - set(names)):
        raise BadInput(
            f"{dataset.key} has labels that the neighbours' dataset lacks: {', '.join(stray[:5])}; compare sets of the same classes"
        )
    places = np.array([names.index(name) for name in dataset.label_names] + [-1], np.int64)  # label −1 picks the last entry
    return places[dataset.labels()]
