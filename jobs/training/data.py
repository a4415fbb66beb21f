"""What a training run reads: one dataset or a mixture of several, and for each of them every teacher's feature set over one set of views.

A name without a digest means the set over the dataset in question, so that one `--features dinov3-h+` serves a whole mixture. Refused
before anything is built: sets that are not complete, sets over different views, and in a mixture teachers, layouts or statistics that
differ between datasets (one adapter cannot map to two normalisations; `extract-features --statistics-from` takes over the first one's).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, CacheMismatch, StoreUnavailable
from ...storage.core.events import OnEvent
from ...storage.core.identity import differing_fields, short
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import drawn_images, held_out_images
from ...storage.images.subsets import ImageSubset
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, size_json, size_text
from ...storage.views.photometric import MODES
from ...storage.views.pixels import ReadableViews
from ...storage.views.view_set import ViewSet
from ...student.data.following import POLL_S, FollowedOrder
from ...student.data.joined import JoinedTargets, JoinedViews
from ...student.data.mixture import MixedOrder, Mixture
from ...student.data.order import BatchOrder, Order
from ...student.data.shard_order import ShardOrder
from ...student.data.sized import SizedTargets
from ...student.data.targets import NO_LAYERS, CachedTargets, Layers, TargetSource
from ...student.model.recipe import TrainRecipe
from ...teachers.registry.spec import RANDOM_WEIGHTS
from ..runs.reading_leases import extractors


@dataclass(frozen=True)
class Part:
    """One dataset of a run: its share of the batches, and the feature sets over it by teacher, all over one set of views."""

    name: str
    share: float
    readers: dict[str, FeatureReader]
    subset: ImageSubset | None = None
    """The images that are drawn from; None: all."""
    by_size: Mapping[SizePx, Mapping[str, FeatureReader]] = field(default_factory=dict)
    """Where the targets' size is drawn: the feature sets of each size by teacher; `readers` has those of the first."""

    @property
    def every_reader(self) -> list[FeatureReader]:
        """Return the feature sets of all teachers and sizes."""
        return [reader for readers in self.by_size.values() or [self.readers] for reader in readers.values()]

    @property
    def images(self) -> int:
        """How many images are drawn from, failed ones included and removed ones not."""
        dataset = self.views.dataset
        drawn = drawn_images(dataset, self.subset, 0.0)
        return len(dataset) - dataset.removed_count if drawn is None else len(drawn)

    @property
    def views(self) -> ViewSet:
        """The views that all of its feature sets share."""
        return next(iter(self.readers.values())).views


def open_parts(
    store: FeatureStore, features: Sequence[str], data: str, shares: Mapping[str, float], *, subsets: Sequence[str] = (),
    complete: bool = True, versions: Mapping[str, str] = MappingProxyType({}), sizes_px: Sequence[SizePx] = (),
) -> list[Part]:  # fmt: skip
    """Return the datasets of a run: those of a mixture's `shares`, or `data` alone; raises `BadInput`, `CacheMismatch`.

    `sizes_px`: input sizes of which each teacher has a feature set; (): it has one. `subsets`: names or keys of recorded subsets of them,
    at most one for each. `versions`: the key of the dataset that a name means here, where it is not the newest.
    """
    if shares and data:
        raise BadInput(f"the recipe mixes {', '.join(shares)}, and --data names {data}; give shares, as in --data A=0.1 --data B=0.9")
    if not shares and not data:
        raise BadInput("training needs a dataset: --data NAME, or several with their shares, as in --data A=0.1 --data B=0.9")
    share_of = dict(sorted(shares.items())) or {data: 1.0}  # which image has which number must not depend on who was named first
    parts = []
    for name, share in share_of.items():
        dataset, mixed = versions.get(name, name), len(share_of) > 1
        if sizes_px:
            by_size = open_sizes(store, features, dataset, sizes_px, mixed=mixed)
            parts.append(Part(name, share, dict(by_size[sizes_px[0]]), by_size=by_size))
        else:
            parts.append(Part(name, share, open_features(store, features, dataset, mixed=mixed, complete=complete)))
    for part in parts[1:]:
        _refuse_different(parts[0], part)
    return with_subsets(store, parts, subsets)


def with_subsets(store: FeatureStore, parts: Sequence[Part], wanted: Sequence[str]) -> list[Part]:
    """Return the datasets with their subsets; a name without a digest means the one over the dataset at hand, as of features.

    Raises `BadInput` for a subset that is unknown, and for several of one dataset, `CacheMismatch` for one of a dataset that is not here.
    """
    assigned = list(parts)
    for name in wanted:
        subsets = [store.subset(key) for key in store.subset_keys(name)]
        fitting = [(n, subset) for n, part in enumerate(parts) for subset in subsets if subset.dataset_digest == part.views.dataset.digest]
        if not fitting:
            here = ", ".join(part.views.dataset.key for part in parts)
            of = ", ".join(f"{subset.key} of dataset @{short(subset.dataset_digest)}" for subset in subsets)
            older = [part.name for part in parts for subset in subsets if _is_earlier(part, subset)]
            newer = f"; that is an older version of {', '.join(older)}, whose new images it says nothing of" if older else ""
            way_out = ", or train on the older version by its key (--data NAME@DIGEST)" if older else ""
            raise CacheMismatch(
                f"--subset {name} is not of what is trained on ({here}): {of}{newer}. Make one with `features curate`{way_out}"
            )
        for n, subset in fitting:
            if (other := assigned[n].subset) is not None and other.key != subset.key:
                raise BadInput(f"{assigned[n].name} has two subsets, {other.key} and {subset.key}; give one, by its whole key")
            assigned[n] = replace(assigned[n], subset=subset)
    return assigned


def _is_earlier(part: Part, subset: ImageSubset) -> bool:
    """Return whether a subset is of an earlier version of a part's dataset."""
    return subset.dataset_digest in {version.digest for version in part.views.dataset.earlier}


def in_recorded_order(parts: Sequence[Part], views: Sequence[str]) -> list[Part]:
    """Return the datasets in the order of the views' keys that an older run has recorded; those that are not among them come last."""
    order_of = {key: number for number, key in enumerate(views)}
    return sorted(parts, key=lambda part: order_of.get(part.views.key, len(order_of)))


def await_sets(store: FeatureStore, features: Sequence[str], datasets: Iterable[str], limit_s: float, on_event: OnEvent) -> None:
    """Wait until an extraction has begun every set that is given by name; raises `StoreUnavailable` after `limit_s` seconds.

    An extraction measures its statistics first, and only then the set has its key.
    """
    started, announced = time.monotonic(), False
    while absent := [
        f"{name} over {data}"
        for data in datasets
        for name in features
        if "@" not in name and features_over(store, name, store.dataset(data)) is None
    ]:
        if time.monotonic() - started >= limit_s:
            raise StoreUnavailable(
                f"no extraction has begun {', '.join(absent)} in {store.url}; run `extract-features` for it, then this again"
            )
        if not announced:
            on_event({"event": "note", "text": f"waiting for an extraction to begin {', '.join(absent)}"})
        announced = True
        time.sleep(min(POLL_S, limit_s))


def open_features(
    store: FeatureStore, features: Sequence[str], data: str, *, mixed: bool = False, complete: bool = True
) -> dict[str, FeatureReader]:
    """Open feature sets over one set of views of a dataset, by teacher name; with `mixed`, keys of other datasets are passed over.

    Raises `BadInput` and `CacheMismatch`, also for a set with missing shards when they have to be `complete`.
    """
    if not features:
        raise BadInput(f"training needs at least one feature set; {store.url} has: {', '.join(store.list_features()) or 'none'}")
    dataset = store.dataset(data)
    readers: dict[str, FeatureReader] = {}
    for name in features:
        reader = features_over(store, name, dataset)
        if reader is None and not mixed:
            other = store.features(name)  # raises when there is none at all
            raise CacheMismatch(
                f"{other.key} was made from {other.views.dataset.key}, not from {dataset.key}; extract for that dataset first"
            )
        if reader is None:
            continue
        if reader.name in readers:
            raise BadInput(f"two feature sets of teacher {reader.name} were given: {readers[reader.name].key} and {reader.key}")
        readers[reader.name] = reader
    if not readers:
        raise BadInput(f"none of {', '.join(features)} is over {dataset.key}; run `extract-features --data {data}` for its teachers")
    _refuse_other_views(readers)
    if complete:
        _refuse_missing_shards(readers.values(), ", or train with --follow or --on-miss compute")
    return readers


def _refuse_missing_shards(readers: Iterable[FeatureReader], way_out: str = "") -> None:
    for reader in readers:
        if missing := reader.missing_shards():
            raise BadInput(
                f"{reader.key} is not complete: {len(missing)} of {reader.shards} shards are missing; "
                f"run the same `extract-features` command again to its end{way_out}"
            )


def open_sizes(
    store: FeatureStore, features: Sequence[str], data: str, sizes_px: Sequence[SizePx], *, mixed: bool = False
) -> dict[SizePx, dict[str, FeatureReader]]:
    """Open each teacher's feature set of each input size over one set of views of a dataset: by size, in their order, and teacher.

    A name stands for the teacher's sets of all these sizes, and each may be given by its key. Raises `BadInput` for a size that has none or
    several, or whose set lacks shards, `CacheMismatch` for sets of other weights, views or statistics.
    """
    dataset = store.dataset(data)
    found: dict[str, FeatureReader] = {}
    for name in features:
        readers = sets_over(store, name, dataset)
        if not readers and not mixed:
            raise BadInput(
                f"there is no feature set {name} over {dataset.key}; {store.url} has: {', '.join(store.list_features()) or 'none'}"
            )
        if "@" in name and (other := [reader for reader in readers if reader.input_px not in sizes_px]):
            expected = ", ".join(map(size_text, sizes_px))
            raise BadInput(f"{other[0].key} is of {size_text(other[0].input_px)} px, which is none of teacher.sizes_px ({expected})")
        found |= {reader.key: reader for reader in readers}
    if not found:
        raise BadInput(f"none of {', '.join(features)} is over {dataset.key}; run `extract-features --data {data}` for its teachers")
    by_size: dict[SizePx, dict[str, FeatureReader]] = {size_px: {} for size_px in sizes_px}
    lacking: list[str] = []
    for teacher in dict.fromkeys(reader.name for reader in found.values()):
        sets = [reader for reader in found.values() if reader.name == teacher]
        for size_px in sizes_px:
            of_size = [reader for reader in sets if reader.input_px == size_px]
            if len(of_size) > 1:
                keys = ", ".join(reader.key for reader in of_size)
                raise BadInput(f"{teacher} has several feature sets of {size_text(size_px)} px over {dataset.key}; give one's key: {keys}")
            if of_size:
                by_size[size_px][teacher] = of_size[0]
            else:
                lacking.append(_making(store, data, teacher, size_px, sets[0]))
    if lacking:
        raise BadInput(
            f"teacher.sizes_px = {[size_json(size_px) for size_px in sizes_px]} with cached targets needs a feature set of each size, and "
            f"there is none of: {'; '.join(lacking)}. Or run the teacher beside the student: --targets live"
        )
    opened = {reader.key: reader for readers in by_size.values() for reader in readers.values()}
    _refuse_other_views(opened)
    _refuse_other_sets(by_size)
    _refuse_missing_shards(opened.values())
    return by_size


def _making(store: FeatureStore, data: str, teacher: str, size_px: SizePx, like: FeatureReader) -> str:
    """Return what lacks, and the command that makes it."""
    spec, size = like.views.spec, size_text(size_px)
    return (
        f"{teacher} at {size} px, made by `extract-features --store {store.url} --data {data} --teacher {teacher} --teacher-size "
        f"{teacher}={size} --views {spec.views_per_image} --seed {spec.seed} --codec {like.layout.codec} --statistics-from {like.key}` "
        f"(where the teacher is a run of yours, its folder in the place of {teacher}; with the --recipe of {like.key})"
    )


def _refuse_other_sets(by_size: Mapping[SizePx, Mapping[str, FeatureReader]]) -> None:
    """Raise `CacheMismatch` unless each teacher's sets of all sizes are of the same weights, and normalised alike."""
    first = next(iter(by_size.values()))
    for readers in by_size.values():
        for name, reader in readers.items():
            if lines := differing_fields(_of_any_size(reader), _of_any_size(first[name])):
                raise CacheMismatch(
                    f"{reader.key} and {first[name].key} are not one teacher's targets at two sizes: {'; '.join(lines)}. One adapter maps "
                    f"to both; extract the second with the same weights and --statistics-from {first[name].key}"
                )


def _of_any_size(reader: FeatureReader) -> dict[str, Any]:
    teacher = reader.identity["teacher"]
    return {
        "weights_sha256": teacher.get("weights_sha256"),
        "widths": [reader.cls_dim, reader.patch_dim],
        "statistics": reader.statistics.digest,
        "statistics of layers": reader.statistics.described().get("layers"),
    }


def sets_over(store: FeatureStore, name_or_key: str, dataset: ImageDataset) -> list[FeatureReader]:
    """Return the feature sets of that name or key over a dataset."""
    teacher, _, prefix = name_or_key.partition("@")
    keys = [key for key in store.list_features() if key.split("@")[0] == teacher and key.split("@")[1].startswith(prefix)]
    return [reader for reader in map(store.features, keys) if reader.views.dataset.digest == dataset.digest]


def features_over(store: FeatureStore, name_or_key: str, dataset: ImageDataset) -> FeatureReader | None:
    """Return the feature set of that name or key over a dataset, None when there is none; raises `BadInput` when there are several."""
    readers = sets_over(store, name_or_key, dataset)
    if len(readers) > 1:
        choices = ", ".join(reader.key for reader in readers)
        raise BadInput(f"{name_or_key!r} is the name of several feature sets over {dataset.key}; say which: {choices}")
    return readers[0] if readers else None


def _refuse_other_views(readers: Mapping[str, FeatureReader]) -> None:
    first = next(iter(readers.values()))
    for reader in readers.values():
        if lines := differing_fields(reader.views.identity, first.views.identity):
            raise CacheMismatch(
                f"{reader.key} was made with other views than {first.key}: {'; '.join(lines)}. Extract all teachers of a run with the "
                "same data, --views and --seed"
            )


def _refuse_different(first: Part, other: Part) -> None:
    """Raise unless two datasets of a mixture have the same teachers, layouts, statistics and photometric mode."""
    if absent := set(first.readers) ^ set(other.readers):
        lacks = first if absent - set(first.readers) else other
        teachers = ", ".join(sorted(absent))
        raise BadInput(
            f"{lacks.name} has no feature set of {teachers}: run `extract-features --data {lacks.name}` for it, with --statistics-from"
        )
    pairs = [(first.readers, other.readers), *((readers, other.by_size[size_px]) for size_px, readers in first.by_size.items())]
    for reader, second in ((reader, of_other[name]) for of_first, of_other in pairs for name, reader in of_first.items()):
        if lines := differing_fields(_decisive(second), _decisive(reader)):
            raise CacheMismatch(
                f"{second.key} over {other.name} cannot be mixed with {reader.key} over {first.name}: {'; '.join(lines)}. Extract both "
                f"alike, the second one with --statistics-from {reader.key}"
            )


def _decisive(reader: FeatureReader) -> dict[str, Any]:
    """Return what feature sets of one mixture must share."""
    spec = reader.views.spec
    distortion = spec.distortion.identity() if MODES[spec.photometric].distorts else None
    return {
        "teacher": reader.identity["teacher"],
        "layout": reader.identity["layout"],
        "statistics": reader.statistics.digest,
        "statistics of layers": reader.statistics.described().get("layers"),
        "photometric": spec.photometric,
        "distortion": distortion,
        "padding": None if spec.letterbox is None else asdict(spec.letterbox),
    }


def refuse_random_weights(readers: Iterable[FeatureReader], allowed: bool) -> None:
    """Raise `BadInput` for tokens of a teacher with random weights, unless the caller says once more that it is a trial."""
    at_random = [reader.key for reader in readers if reader.identity["teacher"].get("weights_sha256") == RANDOM_WEIGHTS]
    if at_random and not allowed:
        raise BadInput(f"{at_random[0]} holds tokens of a teacher with random weights; --allow-random-weights trains on them all the same")


def excluded_images(readers: Iterable[FeatureReader]) -> NDArray[np.int64]:
    """Return images (sorted, unique) for which at least one feature set has no tokens."""
    images = [reader.failed_rows() // reader.views.views_per_image for reader in readers]
    return np.unique(np.concatenate(images)).astype(np.int64)


def joined_views(parts: Sequence[Part]) -> ReadableViews:
    """Return the views of all datasets, numbered one after another."""
    return parts[0].views if len(parts) == 1 else JoinedViews([part.views for part in parts])


def cached_targets(parts: Sequence[Part], layers: Layers = NO_LAYERS, seed: int = 0) -> TargetSource:
    """Return the stored tokens of all datasets, numbered alike, with those of some layers by teacher; `seed` draws each step's size."""
    sources: dict[str, TargetSource] = {
        part.name: SizedTargets(part.by_size, seed, layers) if part.by_size else CachedTargets(part.readers, layers) for part in parts
    }
    return next(iter(sources.values())) if len(parts) == 1 else JoinedTargets(sources, [part.views.rows for part in parts])


def run_order(recipe: TrainRecipe, parts: Sequence[Part], store: FeatureStore, follow_s: float | None) -> BatchOrder:
    """Return the order of the run's views; with `follow_s`, it waits that long for shards that are being extracted."""
    orders: dict[str, BatchOrder] = {part.name: _order_of(recipe, part) for part in parts}
    order = next(iter(orders.values()))
    if len(parts) > 1:
        image_starts = np.cumsum([0, *(len(part.views.dataset) for part in parts)]).tolist()
        row_starts = np.cumsum([0, *(part.views.rows for part in parts)]).tolist()
        mixture = Mixture({part.name: part.share for part in parts}, recipe.seed)
        order = MixedOrder(mixture, orders, dict(zip(orders, image_starts, strict=False)), dict(zip(orders, row_starts, strict=False)))
    if not recipe.data.replace_failed:
        return order
    readers = [part.every_reader for part in parts]
    keys = [reader.key for of_part in readers for reader in of_part]
    return FollowedOrder(order, readers, follow_s or 0.0, lambda: extractors(store, keys))


def _order_of(recipe: TrainRecipe, part: Part) -> BatchOrder:
    views, data = part.views, recipe.data
    excluded = part.views.dataset.removed() if data.replace_failed else excluded_images(part.every_reader)
    if part.subset is not None:
        excluded = np.union1d(excluded, part.subset.left_out())
    excluded = np.union1d(excluded, held_out_images(views.dataset, data.hold_out)) if data.hold_out else excluded
    images, views_per_image = len(views.dataset), views.views_per_image
    if data.order == "shards":
        return ShardOrder(
            images, views_per_image, recipe.seed, excluded, images_per_shard=views.images_per_shard, window_shards=data.window_shards
        )
    return Order(images, views_per_image, recipe.seed, excluded)
