"""Choose the images of a dataset that are worth training on, by tokens that are cached already, and record them as a subset.

In this order: images that are near duplicates of a test set's leave (`against`), of each group of near duplicates the first in the
dataset's order stays, and of what is left a balanced part is drawn. Images without tokens cannot be judged and leave as well. Nothing is
decoded and no teacher runs; 60,000 images take less than a minute and a gigabyte.
Limits: with random crops as views two copies of an image show different parts of it; centre views find more, which is said. Cosines differ
between machines in the last digits, so a pair that lies on the threshold may be found on one alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.images.subsets import ImageSubset, subset_identity
from ...storage.objects.content_addressed import check_name
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.objects.probes import check_writable
from ...storage.store import FeatureStore
from ..runs.reading_leases import leases
from .clusters import balanced, evenness, hierarchy
from .duplicates import (
    Groups,
    best_match,
    chosen_threshold,
    duplicate_groups,
    duplicated,
    histogram,
    nearest_of_a_sample,
    similar_pairs,
)
from .image_tokens import Float32s, Tokens, kind_of, read_in_one_space, read_tokens
from .options import CurateOptions

_NAMED_MEMBERS = 5


def curate_features(options: CurateOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Choose and record a subset; return its key, what left and why, groups and leaks by name, and how many images stay.

    Raise `BadInput` and `CacheMismatch` before anything is computed, and `CacheDamaged`; nothing is written before the end.
    """
    store = FeatureStore.open(options.store)
    reader = store.features(options.key)
    against = None if options.against is None else store.features(options.against)
    if options.name is not None:
        check_name("subset", options.name)
    if not options.dry_run:
        check_writable(store.objects)
    with leases(store, [features.key for features in (reader, against) if features is not None], "curate", on_event):
        _note_random_views(reader, on_event)
        if against is None:
            tokens, tested = read_tokens(reader, on_event), None
        else:
            tokens, tested = read_in_one_space(reader, against, on_event)
    return _Curation(options, reader, against, tokens, tested, on_event).result(store)


def _note_random_views(reader: FeatureReader, on_event: OnEvent) -> None:
    spec = reader.views.spec
    if spec.kind == "random_resized_crop":
        share = f"{spec.scale[0]:g} to {spec.scale[1]:g} of its area"
        text = (
            f"the first view of each image in {reader.key} is a random crop ({share}), so copies of one image show different parts of it "
            "and some are not found; a set of centre views (`extract-features --view-kind center`) finds more"
        )
        on_event({"event": "note", "text": text})


@dataclass(frozen=True)
class _Curation:
    """The steps, over tokens that are in memory."""

    options: CurateOptions
    reader: FeatureReader
    against: FeatureReader | None
    tokens: Tokens
    tested: Tokens | None
    on_event: OnEvent

    @property
    def dataset(self) -> ImageDataset:
        """The images that are chosen from."""
        return self.reader.views.dataset

    def result(self, store: FeatureStore) -> dict[str, Any]:
        """Take the steps, record what stays, and describe it."""
        leaks, groups, threshold = np.zeros(len(self.tokens), np.bool_), Groups(len(self.tokens)), None
        details: dict[str, Any] = {}
        if self.options.finds:
            nearest = nearest_of_a_sample(self.tokens, self.options.seed)
            threshold, why = chosen_threshold(nearest) if self.options.near_duplicates is None else (self.options.near_duplicates, "given")
            details |= {"threshold": threshold, "threshold_why": why, "nearest_neighbours_of_a_sample": histogram(nearest)}
            if self.tested is not None:
                leaks, details["leaks"] = self._leaks(self.tested, threshold)
            if self.options.groups:
                progress = self._progress("compare", len(self.tokens))
                groups = duplicate_groups(self.tokens, threshold, self.options.seed, on_progress=progress)
                details["groups"] = self._named_groups(groups)
        copies = duplicated(groups, leaks)
        left = np.flatnonzero(~leaks & ~copies)
        drawn = left
        if self.options.balance is not None:
            drawn, details["balance"] = self._balanced(left)
        stays = np.zeros(len(self.dataset), np.bool_)
        stays[self.tokens.images_N[drawn]] = True
        counts = {
            "images": len(self.dataset),
            "without_tokens": len(self.dataset) - len(self.tokens),
            "leaks_left_out": int(leaks.sum()),
            "duplicates_left_out": int(copies.sum()),
            "left_out_by_balance": len(left) - len(drawn),
            "kept": len(drawn),
        }
        recorded = self._record(store, stays, threshold)
        return {
            **recorded,
            "dataset": self.dataset.key,
            "features": self.reader.key,
            "compared_by": kind_of(self.reader),
            **counts,
            **details,
        }

    def _record(self, store: FeatureStore, stays: NDArray[np.bool_], threshold: float | None) -> dict[str, Any]:
        chosen_by = self._chosen_by(threshold)
        if self.options.name is None:
            subset_identity(self.dataset, stays, chosen_by)  # raises for one that nobody could train on
            return {"dry_run": True}
        objects = DryRunObjects(store.objects) if self.options.dry_run else store.objects
        subset = ImageSubset.create(objects, self.options.name, self.dataset, stays, chosen_by)
        return {"subset": subset.key, "dry_run": self.options.dry_run}

    def _chosen_by(self, threshold: float | None) -> dict[str, Any]:
        """Return what decided the subset, for its identity: without the steps that were not requested."""
        chosen_by: dict[str, Any] = {"features": self.reader.digest, "token": kind_of(self.reader), "seed": self.options.seed}
        if self.options.groups:
            chosen_by["near_duplicates"] = threshold
        if self.against is not None:
            chosen_by["against"] = {"features": self.against.digest, "threshold": threshold}
        if self.options.balance is not None:
            chosen_by["balance"] = self.options.balance
        return chosen_by

    def _progress(self, stage: str, total: int) -> Callable[[int], None]:
        return lambda done: self.on_event({"event": "progress", "stage": stage, "done": done, "total": total, "unit": "images"})

    def _leaks(self, tested: Tokens, threshold: float) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        """Return which images (N,) are near duplicates of a test image, and the most similar pairs by name."""
        assert self.against is not None
        progress = self._progress("compare with the test set", len(self.tokens))
        pairs = similar_pairs(self.tokens, tested, threshold, self.options.seed, on_progress=progress)
        match, cosine = best_match(pairs, len(self.tokens))
        leaking = match >= 0
        theirs = self.against.views.dataset
        order = np.flatnonzero(leaking)[np.argsort(-cosine[leaking], kind="stable")][: self.options.listed]
        first = [
            {"image": self._id(n), "test_image": theirs.row(int(tested.images_N[match[n]])).id, "cosine": round(float(cosine[n]), 4)}
            for n in order.tolist()
        ]
        of_test = len(np.unique(match[leaking]))
        return leaking, {"against": self.against.key, "images": int(leaking.sum()), "nearest_test_images": of_test, "first": first}

    def _named_groups(self, groups: Groups) -> dict[str, Any]:
        members = groups.members()
        named = [
            {
                "size": len(group),
                "least_cosine_with_first": round(self._least_cosine(group), 4),
                "images": [self._id(n) for n in group[:_NAMED_MEMBERS].tolist()],
            }
            for group in members[: self.options.listed]
        ]
        sizes = np.unique([len(group) for group in members], return_counts=True) if members else ((), ())
        by_size = {str(size): int(count) for size, count in zip(*sizes, strict=True)}
        return {"found": len(members), "images": sum(map(len, members)), "groups_by_size": by_size, "largest": named}

    def _least_cosine(self, members: Sequence[int] | NDArray[np.int64]) -> float:
        units: Float32s = self.tokens.unit(np.asarray(members[: 1 << 14]))
        return float((units[1:] @ units[0]).min())

    def _id(self, n: int) -> str:
        return self.dataset.row(int(self.tokens.images_N[n])).id

    def _balanced(self, left: NDArray[np.int64]) -> tuple[NDArray[np.int64], Mapping[str, Any]]:
        balance = self.options.balance
        assert balance is not None
        wanted = int(balance) if balance >= 1 else max(1, round(balance * len(left)))
        if wanted > len(left):
            raise BadInput(f"--balance {wanted:,} asks for more images than are left, which are {len(left):,} of {len(self.dataset):,}")
        tree = hierarchy(self.tokens.only(left), self.options.seed)
        stays = balanced(tree, wanted, self.options.seed)
        levels = {
            f"{count} clusters": {
                "evenness_before": round(evenness(label, count), 4),
                "evenness_after": round(evenness(label[stays], count), 4),
            }
            for count, label in zip(tree.clusters, tree.label_LN, strict=True)
        }
        return left[stays], {"wanted": wanted, "of": len(left), "levels": levels}
