"""Repair and fidelity of feature sets, which need the teacher: repair what is damaged, measure how faithful the stored tokens are.

The teacher is resolved anew and must be the one in the set's identity, field by field. It examines the store as `verify` does and repairs
what follows from its own files on the way (`storage.upkeep.examination`); what then needs a teacher is computed again and replaced, nothing
is removed first (`repairs_with_teacher`). Fidelity compares stored tokens with a fresh forward over a fixed random sample of views, in the
normalised space that students are trained in.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput, CacheDamaged, EupeError, StoreUnavailable
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.features.layers import patch_array
from ...storage.features.sampling import Positions
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.store import FeatureStore
from ...storage.upkeep.examination import examine
from ...storage.upkeep.examiner import Examiner
from ...storage.views.pixels import view_pixels
from ...teachers.encoders.photometric import pixels_seen_by
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device
from ..extraction.options import TeacherRequest
from ..extraction.stored_tokens import stored_tokens
from ..extraction.transfers import StoredTokens
from .recorded_teacher import recorded_teacher
from .repairs_with_teacher import with_teachers

_SEED = 0xF1DE
_LIKENESS_SHARDS = 4


def teacher_of(reader: FeatureReader, request: TeacherRequest | None) -> TeacherSpec:
    """Return the teacher that made a feature set, found by its name or by `request`; raises `CacheMismatch` naming each other field."""
    return recorded_teacher(reader) if request is None else recorded_teacher(reader, request.name, request.weights)


@dataclass(frozen=True)
class RepairOptions:
    """What is repaired: a store, or what one feature set needs."""

    store: str
    """Folder or URL of the feature store."""
    key: str | None = None
    """The feature set, by name or key; None: everything."""
    teacher: TeacherRequest | None = None
    """The teacher that made the set; None: found by the set's name."""
    dry_run: bool = False
    """Report what would be repaired, and repair nothing."""


@dataclass(frozen=True)
class FidelityOptions:
    """Of which feature set a sample is compared with fresh tokens."""

    store: str
    """Folder or URL of the feature store."""
    key: str
    """The feature set, by name or key."""
    teacher: TeacherRequest | None = None
    """The teacher that made the set; None: found by the set's name."""
    sample: int = 64
    """Views that are computed again."""


def repair_features(options: RepairOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Find all damage of a store, or of what one feature set needs, and repair what can be; return what is repaired and what is not.

    Nothing that is whole is touched. Raises `CacheMismatch` for a given teacher that did not make the set, before anything is done.
    """
    teacher, dry_run, store = options.teacher, options.dry_run, FeatureStore.open_damaged(options.store)
    if dry_run:
        store = FeatureStore(DryRunObjects(store.objects))
    full_key = None if options.key is None else store.features_key(options.key)
    if teacher is not None and full_key is not None:
        with contextlib.suppress(CacheDamaged, StoreUnavailable):  # looked at again when its files are whole
            teacher_of(store.features(full_key), teacher)
    examiner = Examiner(store, full_key, images=True, may_write=not dry_run, on_event=on_event)
    examine(examiner, full_key)
    with_teachers(examiner, lambda reader: teacher_of(reader, teacher), _likeness, dry_run, on_event)
    return _repair_result(examiner, full_key, dry_run)


def _repair_result(examiner: Examiner, key: str | None, dry_run: bool) -> dict[str, Any]:
    """Return the JSON-able result of a repair."""
    findings, damaged = examiner.findings, {"features": dict[str, str](), "views": dict[str, str]()}
    for finding in findings:
        kind, name = finding.where.split("/")[0], finding.where if key is None else str(finding.shard)
        if finding.shard is not None and kind in damaged and not finding.unfinished:
            damaged[kind][name] = finding.what
    return {
        **({"store": examiner.url} if key is None else {"key": key}),
        "damaged": damaged,
        "repaired": sorted({finding.shard for finding in findings if finding.repaired and finding.shard is not None}),
        "rebuilt": {finding.where: finding.source for finding in findings if finding.repaired},
        "planned": [str(finding) for finding in findings] if dry_run else [],
        "left": [] if dry_run else [str(finding) for finding in findings if not finding.repaired and not finding.unfinished],
        "findings": [finding.as_json() for finding in findings],
        "dry_run": dry_run,
    }


def fidelity(options: FidelityOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return the cosine of stored to fresh tokens over a sample of views: mean, 1st percentile and least, for class and patch tokens.

    Those of an intermediate layer stand under the name of its array, such as `patch.4`.
    Of a set that is not complete, the views that are there; raises `BadInput` where none of the sampled ones is.
    """
    reader, sample = FeatureStore.open(options.store).features(options.key), options.sample
    spec = teacher_of(reader, options.teacher)
    chosen = np.sort(np.random.Generator(np.random.Philox(key=_SEED)).choice(reader.rows, min(sample, reader.rows), replace=False))
    committed = chosen[reader.group.committed_mask()[chosen // reader.group.shard_rows]]
    rows = np.setdiff1d(committed, reader.failed_rows())
    if not len(rows):
        raise BadInput(f"none of {len(chosen)} sampled views of {reader.key} is stored yet; extract it first, or give a larger --sample")
    loaded = load_teacher(spec, choose_device("auto").value)
    layers, statistics = reader.layout.layers, reader.statistics
    stored, stored_layers = reader.read(rows), reader.read_layers(rows, layers)
    fresh = _fresh(reader, loaded, rows, stored.position, layers)
    result: dict[str, Any] = {"key": reader.key, "codec": reader.codec, "views": len(rows)}
    result["patch"] = _summary(reader.decode(stored), statistics.normalize_patch(fresh.patch.numpy()))
    if fresh.cls_BD is not None and stored.cls is not None:
        result["cls"] = _summary(stored.cls.astype(np.float32), statistics.normalize_cls(fresh.cls_BD.numpy()))
    for layer, encoded in stored_layers.items():
        normalised = statistics.layers[layer].normalize_patch(fresh.layers[layer].numpy())
        result[patch_array(layer)] = _summary(reader.decode_layer(encoded), normalised)
    return result


def _likeness(reader: FeatureReader, teacher: Teacher) -> float | None:
    """Return the mean cosine of the first row of some shards to the teacher's tokens; None of pooled sets and where no such row is
    intact.
    """
    cosines = []
    for shard in sorted(reader.group.committed())[:_LIKENESS_SHARDS] if "pooled" not in reader.identity["statistics"] else []:
        with contextlib.suppress(EupeError):
            rows = np.array([reader.group.shard_span(shard)[0]])
            stored = reader.read(rows)
            fresh = _fresh(reader, teacher, rows, stored.position).patch.numpy()
            cosines.append(_summary(reader.decode(stored), reader.statistics.normalize_patch(fresh)))
    return float(np.mean([summary["mean"] for summary in cosines])) if cosines else None


def _fresh(
    reader: FeatureReader, teacher: Teacher, rows: NDArray[np.int64], position_nT: Positions | None, layers: tuple[int, ...] = ()
) -> StoredTokens:
    """Compute raw class and patch tokens over the recorded views; resampled and sampled as the stored ones are."""
    views, wanted = reader.views.read(rows), teacher.spec.preprocessing.input
    distortions_nP = reader.views.spec.distortions(views, wanted.size_px)
    parts = []
    for n in range(len(rows)):
        pixels = view_pixels(reader.views, rows[n : n + 1], wanted)
        parameters_BP = torch.from_numpy(distortions_nP[n : n + 1])
        seen = pixels_seen_by("teacher", reader.views.spec.photometric, torch.from_numpy(pixels), parameters_BP)
        positions = None if position_nT is None else position_nT[n : n + 1]
        tokens, of_layers = teacher.with_layers(seen, layers) if layers else (teacher(seen), {})
        parts.append(stored_tokens(tokens, reader.layout, positions, of_layers).moved(Tensor.cpu))
    classes = [part.cls_BD for part in parts if part.cls_BD is not None]
    joined = {layer: torch.cat([part.layers[layer] for part in parts]) for layer in layers}
    return StoredTokens(torch.cat(classes) if classes else None, torch.cat([part.patch for part in parts]), joined)


def _summary(stored: NDArray[np.float32], fresh: NDArray[np.float32]) -> dict[str, float]:
    left, right = stored.reshape(-1, stored.shape[-1]), fresh.reshape(-1, fresh.shape[-1])
    cosine = (left * right).sum(-1) / np.maximum(np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1), 1e-12)
    return {"mean": float(cosine.mean()), "p1": float(np.percentile(cosine, 1)), "min": float(cosine.min())}
