"""How far a finished run agrees with its teachers: on the images that it held out, or on a test set that its teachers saw.

No labels are needed. The targets are stored tokens, over the first recorded view of each image; see `student.probes.agreement` for the
figures and `student.probes.measure_agreement` for the views. With the run's own feature sets, held-out images are measured, and as many
trained ones for the gap. With feature sets over other images by the same teachers, all of these are; tokens that were normalised by
other statistics are brought to those that the run's adapters were trained for, which some set of the store has to hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...storage.core.choices import Device
from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import differing_fields, digest, file_sha256, short
from ...storage.features.features import FeatureReader
from ...storage.features.statistics import Statistics
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import RULE, Int64s
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, as_size, size_hw, size_json
from ...student.export.lineage import read_record, read_targets, recorded_share
from ...student.probes.agreement import Targets, gap
from ...student.probes.measure_agreement import BATCH, Measurement, TokenSet, TokenSets, warn_of_few
from ...student.training.run_folder import load_student
from ...teachers.encoders.tokens import SampledTokens, Tokens, grid_mismatch
from ...teachers.runtime.devices import choose_device
from .knn import evaluated
from .labelled_features import warn_failed
from .models import Model, open_model
from .pooled_features import Failures
from .split_checks import digests_of, distilled_on, shared_indices

_EVERYTHING = 2**62  # images
_Restating = tuple[Statistics, Statistics]
"""The statistics that tokens were normalised by, and those that they should be."""


@dataclass(frozen=True, kw_only=True)
class AgreementOptions:
    """An agreement evaluation: of which run, on which images."""

    model: str
    """A finished run's folder, or one of its parts such as RUN/best; an export has no adapters."""
    store: str
    """Folder or URL of the feature store."""
    features: tuple[str, ...] = ()
    """Feature sets by the run's teachers, by name or key, over other images; (): those that the run learnt from."""
    held_out: bool = False
    """Measure only images that the run's hold-out selects by their ids; so it is without `features`, where the run held any out."""
    images: int | None = None
    """At most so many; None: all. A run that held none out needs it, for its own images were all trained on."""
    batch_size: int = BATCH
    """Images in one forward."""
    device: Device = "auto"
    out: Path | None = None
    """Folder that keeps the result; None: the model's own."""
    dry_run: bool = False
    """Only say by what protocol, and where the result would be kept."""

    def __post_init__(self) -> None:
        if isinstance(features := getattr(self, "features"), str):  # noqa: B009  # which would be taken for a list of its letters
            raise BadInput(f"features is a list of names, such as ({features!r},), got the one name {features!r}")
        if self.images is not None and self.images < 2:
            raise BadInput(f"agreement is a mean over images, of 2 or more, got {self.images}")
        object.__setattr__(self, "features", tuple(self.features))


@dataclass(frozen=True)
class _Asked:
    """Which images are measured."""

    sets: TokenSets
    share: float
    """Of the run's hold-out where it selects the images, else 0."""
    own: bool
    """Whether the run learnt from these datasets."""


def evaluate_agreement(options: AgreementOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return `agreement` (mean over teachers of class and patch cosine), cosines and CKAs, each teacher's; kept beside the model.

    On a run's own held-out images also those of as many `trained` ones, and the `gap`.
    """
    model, folder, store = _open_run(options), Path(options.model), FeatureStore.open(options.store)
    asked = _images_asked(options, store, folder)
    restating = {name: _restating(store, folder, name, reader) for name, reader in asked.sets.sets[0].readers.items()}
    size_px = as_size(model.identity["preprocessing"]["size_px"])
    rows, failed = _rows(asked, options.images)
    protocol = _protocol(options, asked, folder, size_px)
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": protocol}
    warn_of_few(len(rows[0]), on_event)
    images_failed = {} if not failed else {"images_failed": sum(failures.number for failures in failed.values())}
    if not asked.own:
        _say_shared(asked, store, folder, rows[0], on_event)

    def compute() -> dict[str, Any]:
        device = choose_device(options.device).value
        student = load_student(folder).to(device)
        _refuse_other_grids(student.encoder.grid(*size_hw(size_px)), asked.sets, folder)

        def restate(targets: Targets) -> Targets:
            return {name: _restated(tokens, restating[name]) for name, tokens in targets.items()}

        def measured(rows_N: Int64s, what: str) -> dict[str, Any]:
            def on_done(done: int) -> None:
                on_event({"event": "progress", "stage": f"agreement on {what}", "done": done, "total": len(rows_N), "unit": "images"})

            return Measurement(size_px, device, "fp32", options.batch_size, restate, on_done).of(student, asked.sets, rows_N)

        for dataset, failures in failed.items():
            warn_failed(failures, dataset, on_event)
        figures = measured(rows[0], "held-out images" if asked.share else "images")
        if len(rows) == 1:
            return {**figures, "images": len(rows[0]), **images_failed}
        trained = measured(rows[1], "trained images")
        return {**figures, "images": len(rows[0]), **images_failed, "trained": trained, "gap": gap(trained, figures)}

    return evaluated("agreement", model, protocol, compute, on_event)


def _open_run(options: AgreementOptions) -> Model:
    """Return the run's model; raises `BadInput` for one without adapters."""
    folder = Path(options.model)
    model = open_model(options.model, out=options.out) if folder.is_dir() else None
    if model is None or not read_record(folder, "model/adapters.json").get("order"):
        raise BadInput(
            f"{options.model} has no adapters to teachers, through which a student is compared with them; give the folder of a finished "
            "run of `train` (a teacher, an export and an imported model have none)"
        )
    return model


def _images_asked(options: AgreementOptions, store: FeatureStore, folder: Path) -> _Asked:
    """Return what is measured; raises `BadInput` where a run held nothing out and nothing else was asked for, `CacheMismatch`."""
    share, learnt = recorded_share(folder), {dataset.digest for dataset in distilled_on(store, folder)}
    groups = [_given_sets(options, store, folder)] if options.features else _own_sets(store, folder)
    views = [next(iter(readers.values())).views for readers in groups]
    own = all(view_set.dataset.digest in learnt for view_set in views)
    if options.held_out and not share:
        raise BadInput(f"--held-out: {folder} held no image out; {_ADVICE}")
    if own and not share and options.images is None:
        raise BadInput(f"{folder} was trained on all images of {', '.join(view_set.dataset.key for view_set in views)}; {_ADVICE}")
    subsets = read_record(folder, "identities.json").get("subsets", {})
    left_out = [
        store.subset(subsets[view_set.dataset.key]).left_out() if view_set.dataset.key in subsets else np.empty(0, np.int64)
        for view_set in views
    ]
    sets = [TokenSet(readers, without) for readers, without in zip(groups, left_out, strict=True)]
    return _Asked(TokenSets(sets), share if own or options.held_out else 0.0, own)


_ADVICE = (
    "give --features KEY, a set over other images by the same teacher; or --images N to measure on N images that it has seen; "
    "or train with --hold-out 1%"
)


def _given_sets(options: AgreementOptions, store: FeatureStore, folder: Path) -> dict[str, FeatureReader]:
    """Return the named feature sets by the run's name of their teacher; raises `BadInput`, and `CacheMismatch` for another teacher."""
    targets, readers = read_targets(folder), dict[str, FeatureReader]()
    for reader in map(store.features, options.features):
        differing = {name: differing_fields(reader.identity["teacher"], target["identity"]["teacher"]) for name, target in targets.items()}
        name = next((name for name, lines in differing.items() if not lines), None)
        if name is None:
            nearest = min(differing, key=lambda key: len(differing[key]))
            raise CacheMismatch(
                f"{reader.key} was made by none of the teachers of {folder} ({', '.join(targets)}). It differs from {nearest}: "
                f"{'; '.join(differing[nearest][:3])}"
            )
        if name in readers:
            raise BadInput(f"two feature sets of teacher {name} were given, {readers[name].key} and {reader.key}; measure them one by one")
        if "pooled" in reader.identity["statistics"]:
            raise BadInput(f"{reader.key} was made by an evaluation and has no patch tokens; extract the images with `extract-features`")
        readers[name] = reader
    if len({reader.views.key for reader in readers.values()}) > 1:
        listed = ", ".join(f"{reader.key} over {reader.views.key}" for reader in readers.values())
        raise CacheMismatch(f"these feature sets are over different views: {listed}; extract the teachers together")
    return readers


def _own_sets(store: FeatureStore, folder: Path) -> list[dict[str, FeatureReader]]:
    """Return the feature sets that a run learnt from, by teacher, for each of its datasets; raises `BadInput` when some are not here."""
    keys, groups = read_record(folder, "identities.json").get("views", []), dict[str, dict[str, FeatureReader]]()
    for name, target in read_targets(folder).items():
        for key in _keys_of(store, target, keys):
            if key not in store.list_features():
                raise BadInput(f"{store.url} lacks {key}, which {folder} learnt from; give the --store that has it, or --features KEY")
            reader = store.features(key)
            if name in (group := groups.setdefault(reader.views.key, {})):
                raise BadInput(f"{group[name].key} and {reader.key} are both of {name} over {reader.views.key}; give one with --features")
            group[name] = reader
    if not groups:
        raise BadInput(f"{store.url} holds no feature set that {folder} learnt from; give the --store that does, or --features KEY")
    return [groups[key] for key in sorted(groups, key=lambda views_key: keys.index(views_key) if views_key in keys else len(keys))]


def _keys_of(store: FeatureStore, target: Mapping[str, Any], views: Sequence[str]) -> list[str]:
    """Return the keys of a target's feature sets: as recorded, or for live targets those whose statistics normalised them."""
    if "features" in target:
        return [str(entry["features"]) for entry in (target, *target.get("mixed_with", {}).values())]
    learnt, digests = [], {store.view_set(key).digest for key in views if key in store.list_view_sets()}
    for key in store.list_features():
        identity = store.features_identity(key)
        alike = {"teacher": identity["teacher"], "statistics": identity["statistics"]["digest"]} == dict(target["identity"])
        learnt += [key] if alike and identity["views"] in digests else []
    return learnt


def _restating(store: FeatureStore, folder: Path, name: str, reader: FeatureReader) -> _Restating | None:
    """Return how tokens come to the normalisation of the run's adapters, None where they have it; raises `CacheMismatch`."""
    wanted = read_record(folder, "model/adapters.json")["teachers"][name]["statistics"]
    if reader.statistics.digest == wanted:
        return None
    for key in store.list_features():
        if store.features_identity(key)["statistics"]["digest"] == wanted:
            return reader.statistics, store.features(key).statistics
    recorded = read_targets(folder).get(name, {}).get("features", f"the set of {name} that {folder} learnt from")
    raise CacheMismatch(
        f"{reader.key} was normalised by other statistics than those that {folder} was trained with, which no set of {store.url} has; "
        f"extract it with --statistics-from {recorded}"
    )


def _restated(tokens: Tokens | SampledTokens, statistics: _Restating | None) -> Tokens | SampledTokens:
    if statistics is None:
        return tokens

    def moved(values: Tensor, kind: str) -> Tensor:
        plain = getattr(statistics[0], f"denormalize_{kind}")(values.cpu().numpy())
        return torch.from_numpy(getattr(statistics[1], f"normalize_{kind}")(plain)).to(values.device)

    cls_BD = None if tokens.cls_BD is None else moved(tokens.cls_BD, "cls")
    if isinstance(tokens, SampledTokens):
        return tokens._replace(cls_BD=cls_BD, patch_BTD=moved(tokens.patch_BTD, "patch"))
    return Tokens(cls_BD, moved(tokens.patch_BHWD, "patch"))


def _rows(asked: _Asked, limit: int | None) -> tuple[list[Int64s], dict[ImageDataset, Failures]]:
    """Return the rows that are measured, and what they lack; on a run's own hold-out as many trained ones behind them.

    Raises `BadInput` for none.
    """
    sets, count = asked.sets, _EVERYTHING if limit is None else limit
    candidates = [sets.sample(count, asked.share, held_out=asked.share > 0)]
    if asked.own and asked.share:
        candidates.append(sets.sample(2 * len(candidates[0]), asked.share, held_out=False))
    if not all(sets.are_there(rows) for rows in candidates):
        keys = ", ".join(reader.key for token_set in sets.sets for reader in token_set.readers.values())
        raise BadInput(f"not all tokens of {keys} are there yet; run the same `extract-features` command again to its end")
    measurable = [sets.with_tokens(rows) for rows in candidates]
    least = min(map(len, measurable))
    if least < 1:
        what = f"the hold-out of {asked.share:.3g} selects none" if asked.share else "none has tokens"
        raise BadInput(f"no image of {', '.join(token_set.views.dataset.key for token_set in sets.sets)} can be measured: {what}")
    return [rows[:least] for rows in measurable], _failures(sets, candidates[0])


def _failures(sets: TokenSets, rows_N: Int64s) -> dict[ImageDataset, Failures]:
    """Return by dataset the images that were asked for and that a teacher failed on; removed ones are not counted."""
    found, start = dict[ImageDataset, Failures](), 0
    for token_set in sets.sets:
        views, stop = token_set.views, start + token_set.views.rows
        asked = np.setdiff1d(views.images_of(rows_N[(rows_N >= start) & (rows_N < stop)] - start), views.dataset.removed())
        failures = max((Failures.among(reader, asked) for reader in token_set.readers.values()), key=lambda of_one: of_one.number)
        found |= {views.dataset: failures} if failures.number else {}
        start = stop
    return found


def _protocol(options: AgreementOptions, asked: _Asked, folder: Path, size_px: SizePx) -> dict[str, Any]:
    """Return what decides the figures, besides the model."""
    datasets = [token_set.views.dataset for token_set in asked.sets.sets]
    keys = [{name: reader.key for name, reader in token_set.readers.items()} for token_set in asked.sets.sets]
    data_digest = datasets[0].digest if len(datasets) == 1 else digest({"datasets": [dataset.digest for dataset in datasets]})
    images = {
        "dataset": f"{' + '.join(dataset.name for dataset in datasets)}@{short(data_digest)}", "digest": data_digest,
        "images": sum(map(len, datasets)), "sample": options.images,
    }  # fmt: skip
    if asked.share:
        images |= {"held_out": asked.share, "rule": RULE}
    elif asked.own:
        images |= {"trained_on": True}
    return {
        "test": images, "features": keys[0] if len(keys) == 1 else keys, "view": {"number": 0, "size_px": size_json(size_px)},
        "adapters_sha256": file_sha256(folder / "model" / "adapters.safetensors"),
        "targets": "stored tokens, normalised as in training", "cka": "linear, centred, not debiased",
    }  # fmt: skip


def _refuse_other_grids(grid: tuple[int, int], sets: TokenSets, folder: Path) -> None:
    for token_set in sets.sets:
        for reader in token_set.readers.values():
            if reader.layout.tokens_per_view is not None and reader.grid != grid:
                raise BadInput(grid_mismatch(f"{folder} at its own size", grid, reader.grid))


def _say_shared(asked: _Asked, store: FeatureStore, folder: Path, rows_N: Int64s, on_event: OnEvent) -> None:
    """Warn of measured images whose bytes the run was trained on under other names."""
    (token_set,) = asked.sets.sets
    digests = list(digests_of(token_set.views.dataset, np.sort(token_set.views.images_of(rows_N))))
    learnt = (learnt_digest for dataset, images in distilled_on(store, folder).items() for learnt_digest in digests_of(dataset, images))
    if shared := shared_indices(learnt, digests):
        text = f"{len(shared):,} of {len(digests):,} measured images were trained on, by their bytes; the figure measures memory as well"
        on_event({"event": "warning", "text": text})
