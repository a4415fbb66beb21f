"""Features and labels of a labelled dataset, for the evaluations that classify images: kNN, the linear probe, zero-shot.

A dataset is one of a store, by name, or a folder, tars or Parquet files, which are indexed into the store first (once: a source that the
store has indexed is taken as it is, and every image read is compared with the index). Whole datasets go through the store
(`pooled_features`) and resume; a sample (keyed, the same for every model) is computed at once and not kept. Cached tokens are
de-normalised to the teacher's own space, one view an image (k = 0). Axes: N images, D channels.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.cache_home import evaluations_folder
from ...storage.core.choices import Device
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.urls import is_url
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.images.indexing import MAX_BAD_SHARE, build_index
from ...storage.images.locations import canonical_source
from ...storage.objects.atomic_files import make_folder
from ...storage.sources.decode import BadImage
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, as_size, size_json
from ...storage.views.photometric import MODES
from ...storage.views.pixels import center_square
from ...student.data.decode_tokens import mean_patch
from ...student.data.order import KeyedPermutation
from ...student.probes.knn import Embeddings, embed
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device
from .models import CachedModel, Model
from .pooled_features import Failures, pooled_features, present_images

_READ_ROWS = 256
_READ_THREADS = 2
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("val", "validation", "test")

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class EvaluatedImages:
    """Which images a model is tested on, and at what input."""

    test_images: int | None = None
    """A random sample of this many; None: all."""
    size_px: SizePx | None = None
    """Input size; None: the model's own."""
    crop_fraction: float = 1.0
    """Share of the shorter side that the centre crop keeps (0.875 is the official resize 256 → crop 224)."""
    batch_size: int = 128
    """Images in one forward."""
    device: Device = "auto"
    max_bad_share: float = MAX_BAD_SHARE
    """Refuse where more than this share of a set's images cannot be decoded; extracted tokens are only warned of."""


@dataclass(frozen=True)
class EvaluationSize(EvaluatedImages):
    """How much is learnt from and tested on, and at what input."""

    train_images: int | None = None
    """A random sample of this many; None: all."""
    allow_overlap: bool = False
    """Test images that are also trained on are a warning instead of an error."""


@dataclass(frozen=True, kw_only=True)
class ClassifiedOptions(EvaluationSize):
    """A model and two labelled datasets: what kNN and the linear probe share."""

    model: str
    """A run's folder, an exported folder, a checkpoint file, a teacher, or a feature set (read, not computed)."""
    store: str | None = None
    """Folder or URL of the feature store; None: the evaluations' own below $EUPE_PIPELINE_HOME."""
    data: str | None = None
    """Folder with train/ and val/, each with a folder a class; or `train_set` and `test_set`."""
    train_set: str | None = None
    """Dataset of the store, folder or Parquet files to learn from."""
    test_set: str | None = None
    """Dataset of the store, folder or Parquet files that is classified."""
    weights: Path | None = None
    """A named teacher's weight file."""
    out: Path | None = None
    """Folder that keeps the result; None: the model's own."""
    allow_random_weights: bool = False
    """A named teacher without its file gets random weights, for trials; its record says so."""
    check: bool = False
    """Only tell what the data lack; the model is not looked at, and no store is written."""
    dry_run: bool = False
    """Only say by what protocol, and where the result would be kept."""

    def datasets(self) -> tuple[str, str]:
        """Return the names or sources of the training and the test set: given one by one, or as a folder that holds both."""
        if self.data is not None and self.train_set is None and self.test_set is None:
            return split_folders(self.data)
        if self.data is None and self.train_set is not None and self.test_set is not None:
            return self.train_set, self.test_set
        raise BadInput("give --train and --test, or --data with a folder that holds train/ and val/, and not both")


WHOLE = EvaluationSize()


class LabelledSplit(NamedTuple):
    """Features of N images, their labels as indexes into the classes, and which images of the dataset they are."""

    embeddings: Embeddings
    labels: Int64s
    images: Int64s
    failed: int = 0
    """Further images of the split that have no tokens, and are left out."""


@dataclass(frozen=True)
class Split:
    """One split of an evaluation: a dataset, or a sample of it, and the model that computes its features."""

    model: Model | CachedModel
    store: FeatureStore
    dataset: ImageDataset
    size: EvaluatedImages
    limit: int | None
    purpose: str
    """train or test: two samples of one dataset are different ones."""

    def protocol(self) -> dict[str, Any]:
        """Return what decides the split's features, besides the model."""
        images = {"dataset": self.dataset.key, "digest": self.dataset.digest, "images": len(self.dataset), "sample": self.limit}
        images |= {} if self.dataset.indexed == "stored" else {"orientation": self.decoded.orientation}
        if isinstance(self.model, CachedModel):
            reader = self.model.over(self.dataset.digest)
            return {**images, "features": reader.key, "features_digest": reader.digest}
        prep = self.model.spec.preprocessing
        view = {
            "crop": "center",
            "fraction": self.size.crop_fraction,
            "size_px": size_json(prep.size_px),
            "interpolation": prep.interpolation,
        }
        return {**images, "view": view}

    @property
    def decoded(self) -> ImageDataset:
        """The images as the model saw them: read as stored, but for cached tokens as they were extracted."""
        return self.model.over(self.dataset.digest).views.dataset if isinstance(self.model, CachedModel) else self.dataset

    @property
    def size_px(self) -> SizePx:
        """Size of the model's input."""
        return as_size(self.model.identity["preprocessing"]["size_px"])

    @property
    def images(self) -> Int64s:
        """Which images of the dataset it takes, rising."""
        return sample_images(self.dataset, self.limit, self.purpose)

    def features(self, classes: list[str], on_event: OnEvent) -> LabelledSplit:
        """Compute or read them; images without tokens are left out, which is said.

        Raises `BadInput` where more than `max_bad_share` of the images that are computed here cannot be decoded.
        """
        if isinstance(self.model, CachedModel):
            reader = self.model.over(self.dataset.digest)
        elif self.limit is None or self.limit >= len(self.dataset):
            reader = pooled_features(
                self.store, self.dataset, self.model, device=choose_device(self.size.device).value,
                crop_fraction=self.size.crop_fraction, batch_size=self.size.batch_size, on_event=on_event,
                max_bad_share=self.size.max_bad_share,
            )  # fmt: skip
        else:
            return self._sampled(self.model.load(choose_device(self.size.device).value), classes, on_event)
        images, failed = cached_images(reader, self.limit, self.purpose, on_event)
        return LabelledSplit(read_embeddings(reader, images, on_event), labels_as(self.dataset, classes)[images], images, failed)

    def _sampled(self, teacher: Teacher, classes: list[str], on_event: OnEvent) -> LabelledSplit:
        images, failed = self.images, dict[int, str]()

        def failures() -> Failures:
            return Failures.of({self.dataset.row(image).id: reason for image, reason in failed.items()}, len(images))

        def batches() -> Iterator[NDArray[np.uint8]]:
            for batch in center_batches(self.dataset, images, teacher, self.size, failed):
                failures().refuse_many(self.dataset, self.store, self.size.max_bad_share)
                yield batch
            failures().refuse_many(self.dataset, self.store, self.size.max_bad_share)

        embeddings = embed(teacher, batches())
        warn_failed(failures(), self.dataset, on_event)
        images = np.setdiff1d(images, list(failed))
        return LabelledSplit(embeddings, labels_as(self.dataset, classes)[images], images, len(failed))


def open_data(store: FeatureStore, name: str, on_event: OnEvent = ignore_event) -> ImageDataset:
    """Open a dataset of the store by name or key, or index a source into the store under its folder's name.

    Images are read as they are stored, as the paper's and the official evaluations read them, also those of a dataset that was indexed
    upright.
    """
    source = canonical_source(name)
    if name.partition("@")[0] in {key.partition("@")[0] for key in store.list_datasets()} or not (is_url(source) or Path(source).exists()):
        return store.dataset(name).read_as("stored")  # also where a folder of the same name lies here: `./photos` means the folder
    for key in store.newest_versions("datasets", store.list_datasets()):
        dataset = store.dataset(key)
        if canonical_source(dataset.source) == source and dataset.orientation == "stored":
            on_event({"event": "note", "text": f"{name} is indexed as {key}; `index` takes in what has changed since"})
            return dataset
    parts = [part for part in Path(source).parts[-2:] if part not in ("/", "")]
    cleaned = "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in parts).strip("-.") or "images"
    return build_index(store.objects, source, cleaned, orientation="stored", as_version=False, on_event=on_event)


def read_upright(*splits: Split) -> dict[str, str]:
    """Return {"images_read": …} for a result over images that were turned upright (cached tokens may be), {} when all are as stored."""
    keys = list(dict.fromkeys(split.decoded.key for split in splits if split.decoded.orientation != "stored"))
    text = f"{' and '.join(keys)} upright; the paper's and the official evaluations read images as stored (index --orientation stored)"
    return {"images_read": text} if keys else {}


def warn_upright(model: Model | CachedModel, upright: Mapping[str, str], what: str, on_event: OnEvent) -> None:
    """Say what becomes of figures by published protocols over cached tokens of turned images."""
    if upright:
        text = f"the tokens of {model.name} were extracted from {upright['images_read']}: {what}"
        advice = "evaluate the model itself (its run, or its name with a store that holds no tokens of it), or tokens of such an index"
        on_event({"event": "warning", "text": f"{text}; {advice}"})


def open_store(url: str | None) -> FeatureStore:
    """Open the store at `url`; without one, the evaluations' own below $EUPE_PIPELINE_HOME, made when absent."""
    if url is not None:
        return FeatureStore.open(url)
    folder = evaluations_folder() / "store"
    make_folder(folder.parent)
    return FeatureStore.create(str(folder))


def split_folders(folder: str) -> tuple[str, str]:
    """Return the training and the test folder below `folder` (ImageNet's layout); raises `BadInput` that names what is missing."""
    folders = []
    for names in (TRAIN_FOLDERS, TEST_FOLDERS):
        present = [name for name in names if (Path(folder) / name).is_dir()]
        if not present:
            raise BadInput(f"{folder} has no folder {' or '.join(names)}; give --train and --test instead of --data")
        folders.append(str(Path(folder) / present[0]))
    return folders[0], folders[1]


def sample_images(dataset: ImageDataset, limit: int | None, purpose: str) -> Int64s:
    """Return all images that the source still has, or `limit` of them drawn without replacement, in index order."""
    images = present_images(dataset)
    if limit is None or limit >= len(images):
        return images
    return images[np.sort(KeyedPermutation(len(images), 0, f"knn {purpose}", 0)(np.arange(limit)))]


def labels_as(dataset: ImageDataset, names: list[str]) -> Int64s:
    """Return the dataset's labels as indexes into `names`, −1 for none; raises `BadInput` for a label that `names` lacks."""
    if stray := sorted(set(dataset.label_names) - set(names)):
        raise BadInput(
            f"{dataset.key} has labels that the neighbours' dataset lacks: {', '.join(stray[:5])}; compare sets of the same classes"
        )
    index_of = np.array([names.index(name) for name in dataset.label_names] + [-1], np.int64)  # label −1 picks the last entry
    return index_of[dataset.labels()]


def embed_images(teacher: Teacher, dataset: ImageDataset, images: Int64s, size: EvaluatedImages) -> Embeddings:
    """Compute features of some images of a dataset, centre crop, in the order of `images`."""
    return embed(teacher, center_batches(dataset, images, teacher, size))


def center_batches(
    dataset: ImageDataset, images: Int64s, teacher: Teacher, size: EvaluatedImages, failed: dict[int, str] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield centre crops (B, size, size, 3) of some images at the teacher's input size.

    An image that cannot be decoded is put into `failed` (image → reason) and left out; without one it raises `BadImage`.
    """
    model_input = teacher.spec.preprocessing.input
    for start in range(0, len(images), size.batch_size):
        crops = []
        for image in images[start : start + size.batch_size].tolist():
            try:
                crops.append(center_square(dataset.read_image(image), model_input, size.crop_fraction))
            except BadImage as error:
                if failed is None:
                    raise
                failed[image] = str(error)
        if crops:
            yield np.stack(crops)


def cached_images(reader: FeatureReader, limit: int | None, purpose: str, on_event: OnEvent = ignore_event) -> tuple[Int64s, int]:
    """Return the sampled images that have tokens, and the number of those that have none, of which it warns."""
    images = sample_images(reader.views.dataset, limit, purpose)
    failures = Failures.among(reader, images)
    warn_failed(failures, reader.views.dataset, on_event)
    return np.setdiff1d(images, reader.failed_rows() // reader.views.views_per_image), failures.number


def warn_failed(failures: Failures, dataset: ImageDataset, on_event: OnEvent) -> None:
    """Warn of images that a figure leaves out, where there are any."""
    if failures.number:
        text = f"{failures.told(dataset)} have no tokens because they could not be decoded, and are left out"
        on_event({"event": "warning", "text": text})


def failed_counts(**splits: int) -> dict[str, int]:
    """Return `train_images_failed` and `test_images_failed` of a result, where they are not 0."""
    return {f"{split}_images_failed": count for split, count in splits.items() if count}


def read_embeddings(reader: FeatureReader, images: Int64s, on_event: OnEvent = ignore_event) -> Embeddings:
    """Read view 0 of each image from a feature set: class tokens and mean patch tokens, de-normalised to the teacher's own space.

    Raises `BadInput` for tokens of distorted views: an evaluation is of what a teacher says about the images themselves.
    """
    if MODES[reader.views.spec.photometric].seen_by_teacher:
        raise BadInput(
            f"{reader.key} holds tokens of distorted views (photometric {reader.views.spec.photometric}), which are not evaluated; "
            "extract with --photometric none or student_only, best with --view-kind center"
        )
    rows, statistics = images * reader.views.views_per_image, reader.statistics

    def chunk(start: int) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        chunk_rows = rows[start : start + _READ_ROWS]
        tokens = reader.read(chunk_rows)
        cls_nD = None if tokens.cls is None else statistics.denormalize_cls(tokens.cls.astype(np.float32))
        if reader.views.spec.letterbox is not None:
            return cls_nD, statistics.denormalize_patch(reader.mean_patch(chunk_rows, tokens))
        scale = None if tokens.scale is None else torch.from_numpy(tokens.scale)
        # The mean commutes with the de-normalisation, which is affine and the same for every token. Of a sampled set it is the mean of
        # the stored tokens: see `knn.mean_patch_name`.
        mean_nD = statistics.denormalize_patch(mean_patch(torch.from_numpy(tokens.patch), scale, reader.codec).numpy())
        return cls_nD, mean_nD

    chunks, starts = [], range(0, len(rows), _READ_ROWS)
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read") as pool:
        for start, tokens in zip(starts, pool.map(chunk, starts), strict=True):
            chunks.append(tokens)
            done = min(start + _READ_ROWS, len(rows))
            on_event({"event": "progress", "stage": f"read {reader.name}", "done": done, "total": len(rows), "unit": "images"})
    if not chunks:
        raise BadInput(f"{reader.key} has no tokens of these images")
    classes = [cls for cls, _ in chunks if cls is not None]
    return Embeddings(np.concatenate(classes) if classes else None, np.concatenate([mean for _, mean in chunks]))
