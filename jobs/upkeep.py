"""Upkeep of feature sets that needs their teacher: make damaged shards again, and measure how faithful the stored tokens are.

The teacher is resolved anew and must be the one in the set's identity, field by field. Repair takes out only damaged shards, record first,
and extracts just those; a damaged shard of the views is drawn again, which gives the same bytes. Fidelity compares stored tokens with a
fresh forward over a fixed random sample of views, in the normalised space that students are trained in.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..storage.errors import BadInput
from ..storage.features import FeatureReader
from ..storage.maintenance import repair, verify
from ..storage.sampling import Positions
from ..storage.store import FeatureStore
from ..storage.views import render
from ..student.devices import choose_device
from ..teachers.photometric import as_seen
from ..teachers.registry import load_teacher
from ..teachers.spec import TeacherSpec
from ..teachers.teacher import Teacher
from .extract_options import TeacherRequest
from .pool import workers
from .recorded_teacher import recorded_teacher
from .shard_work import WorkOrder
from .stored_tokens import stored_tokens

OnEvent = Callable[[dict[str, Any]], None]
_BATCH = 32
_SEED = 0xF1DE


def teacher_of(reader: FeatureReader, request: TeacherRequest | None) -> TeacherSpec:
    """The teacher that made a feature set, found by its name or by `request`; raises `CacheMismatch` naming each other field."""
    return recorded_teacher(reader) if request is None else recorded_teacher(reader, request.name, request.weights)


def repair_features(
    store_url: str, key: str, *, teacher: TeacherRequest | None = None, on_event: OnEvent = lambda event: None, dry_run: bool = False
) -> dict[str, Any]:
    """Find the damaged shards of a feature set and of its views, and make them again; returns which and why (JSON-able)."""
    store = FeatureStore.open(store_url)
    reader = store.features(key)
    damage = {"features": verify(reader, on_event=on_event), "views": verify(reader.views, on_event=on_event)}
    found = {kind: {str(one.shard): one.reason for one in damaged} for kind, damaged in damage.items()}
    shards = sorted({one.shard for damaged in damage.values() for one in damaged})
    if shards and not dry_run:
        spec = teacher_of(reader, teacher)
        repair(reader, damage["features"])
        repair(reader.views, damage["views"])
        order = WorkOrder(store.url, reader.views.key, (spec,), choose_device("auto").value, torch.get_num_threads(), _BATCH)
        with workers(order, 0, None) as crew:
            tasks = [("do_shard", (shard, {spec.name: reader.key})) for shard in shards]
            for done, _ in enumerate(crew.run(tasks), start=1):
                on_event({"event": "progress", "stage": f"repair {reader.key}", "done": done, "total": len(shards), "unit": "shards"})
    return {"key": reader.key, "damaged": found, "repaired": [] if dry_run else shards, "dry_run": dry_run}


def fidelity(store_url: str, key: str, *, teacher: TeacherRequest | None = None, sample: int = 64) -> dict[str, Any]:
    """Cosine of stored against fresh tokens over `sample` views: mean, 1st percentile and least, for class and patch tokens.

    Of a set that is not complete, the views that are there; raises `BadInput` where none of the sampled ones is.
    """
    reader = FeatureStore.open(store_url).features(key)
    spec = teacher_of(reader, teacher)
    chosen = np.sort(np.random.Generator(np.random.Philox(key=_SEED)).choice(reader.rows, min(sample, reader.rows), replace=False))
    there = chosen[reader.group.committed_mask()[chosen // reader.group.shard_rows]]
    rows = np.setdiff1d(there, reader.failed_rows())
    if not len(rows):
        raise BadInput(f"none of {len(chosen)} sampled views of {reader.key} is stored yet; extract it first, or give a larger --sample")
    loaded = load_teacher(spec, choose_device("auto").value)
    stored = reader.read(rows)
    cls_nD, patch = _fresh(reader, loaded, rows, stored.position)
    result: dict[str, Any] = {"key": reader.key, "codec": reader.codec, "views": len(rows)}
    result["patch"] = _summary(reader.decode(stored), reader.statistics.normalize_patch(patch))
    if cls_nD is not None and stored.cls is not None:
        result["cls"] = _summary(stored.cls.astype(np.float32), reader.statistics.normalize_cls(cls_nD))
    return result


def _fresh(
    reader: FeatureReader, teacher: Teacher, rows: NDArray[np.int64], position_nT: Positions | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
    """Raw class and patch tokens of a forward pass over the recorded views: resampled and sampled as the stored ones are."""
    views, preprocessing = reader.views.read(rows), teacher.spec.preprocessing
    classes, patches = [], []
    for n, row in enumerate(rows.tolist()):
        image = reader.views.dataset.read_image(row // reader.views.views_per_image)
        pixels = render(image, views.crop[n], bool(views.flip[n]), preprocessing.size_px, preprocessing.interpolation)
        parameters_BP = torch.from_numpy(views.photometric[n : n + 1])
        seen = as_seen("teacher", reader.views.spec.photometric, torch.from_numpy(np.array(pixels))[None], parameters_BP)
        places = None if position_nT is None else position_nT[n : n + 1]
        cls_BD, patch = stored_tokens(teacher(seen), reader.layout, places)
        patches.append(patch.cpu().numpy())
        if cls_BD is not None:
            classes.append(cls_BD.cpu().numpy())
    return np.concatenate(classes) if classes else None, np.concatenate(patches)


def _summary(stored: NDArray[np.float32], fresh: NDArray[np.float32]) -> dict[str, float]:
    left, right = stored.reshape(-1, stored.shape[-1]), fresh.reshape(-1, fresh.shape[-1])
    cosine = (left * right).sum(-1) / np.maximum(np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1), 1e-12)
    return {"mean": float(cosine.mean()), "p1": float(np.percentile(cosine, 1)), "min": float(cosine.min())}
