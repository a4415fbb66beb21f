"""The part of a repair that needs teachers: shards of features, and canaries that nothing in the store can give back.

First the prerequisites, a set at a time: is the teacher found with the weights that the identity names, is it the one of the canary, are
the images there as they were? What is not is reported with the command that helps, and the next shard or set is repaired all the same. All
tokens of a shard are computed; only then its damaged parts, and only those, are replaced (`FeatureReader.repair_shard`).
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby

import torch

from ...storage.core.errors import CacheMismatch, EupeError
from ...storage.core.events import OnEvent
from ...storage.features.canaries import pack_canary
from ...storage.features.features import FeatureReader
from ...storage.objects.damaged_files import replace_verified
from ...storage.store import FeatureStore
from ...storage.upkeep.examiner import Examiner, ToExtract
from ...teachers.registry.canary import canary
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device
from ..extraction.shard_worker import ShardWorker
from ..extraction.work_orders import WorkOrder

Resolve = Callable[[FeatureReader], TeacherSpec]
Likeness = Callable[[FeatureReader, Teacher], float | None]
_BATCH = 32
_MIN_COSINE = 0.9  # of stored against fresh tokens: far below int4's 0.997, far above another teacher's


def with_teachers(examiner: Examiner, resolve: Resolve, likeness: Likeness, dry_run: bool, on_event: OnEvent) -> None:
    """Repair what the examination left to teachers; `likeness`: the cosine of a set's intact rows to the teacher's, None without any."""
    specs = _Specs(resolve)
    for where, (reader, finding) in examiner.canaries.items():
        try:
            spec = specs.of(reader)
            if not dry_run:
                _record_canary(examiner, where, reader, spec, likeness)
            examiner.update_finding(finding, repaired=not dry_run, way_out=examiner.repair if dry_run else "")
        except EupeError as error:
            examiner.update_finding(finding, repaired=False, way_out=_give_teacher(examiner, reader, error))
    for reader, to_extract in _by_set(examiner.to_extract):
        try:
            spec = specs.of(reader)
            repair_shard = _dry_run_repairer(reader) if dry_run else _repairer(examiner, reader, spec)
        except EupeError as error:
            for item in to_extract:
                examiner.update_finding(item.finding, repaired=False, way_out=_give_teacher(examiner, reader, error))
            continue
        for done, item in enumerate(to_extract, start=1):
            try:
                repair_shard(item.shard)
                examiner.update_finding(item.finding, repaired=not dry_run, way_out=examiner.repair if dry_run else "")
            except EupeError as error:
                examiner.update_finding(item.finding, repaired=False, way_out=f"it cannot be now: {error}; then {examiner.repair}")
            on_event({"event": "progress", "stage": f"repair {reader.key}", "done": done, "total": len(to_extract), "unit": "shards"})


class _Specs:
    """Teachers by feature set, each resolved once."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve, self._known = resolve, dict[str, TeacherSpec]()

    def of(self, reader: FeatureReader) -> TeacherSpec:
        """Return the teacher of a set; raises `CacheMismatch` where it is not found, or not one that this version can build."""
        if reader.key not in self._known:
            try:
                self._known[reader.key] = self._resolve(reader)
            except (KeyError, TypeError, AttributeError) as error:  # whoever wrote the identity
                raise CacheMismatch(f"the identity of {reader.key} describes no teacher that this version knows ({error!r})") from error
        return self._known[reader.key]


def _by_set(to_extract: Iterable[ToExtract]) -> list[tuple[FeatureReader, list[ToExtract]]]:
    """Group the shards to be extracted by feature set, in order."""
    grouped = groupby(sorted(to_extract, key=lambda item: (item.reader.key, item.shard)), key=lambda item: item.reader.key)
    parts = [list(items) for _, items in grouped]
    return [(part[0].reader, part) for part in parts]


def _give_teacher(examiner: Examiner, reader: FeatureReader, error: EupeError) -> str:
    """Return the advice where the teacher is not found, or is another one."""
    again = examiner.command("features", "repair", reader.key, "--teacher", "TEACHER")
    return f"its teacher is needed: {error}; run {again}, where TEACHER is its name or its run's folder (and --weights its weight file)"


def _repairer(examiner: Examiner, reader: FeatureReader, spec: TeacherSpec) -> Callable[[int], None]:
    """Return the function that repairs a shard. The worker compares its teacher with the canary before its first shard."""
    order = WorkOrder(examiner.url, reader.views.key, (spec,), choose_device("auto").value, torch.get_num_threads(), _BATCH)
    return partial(ShardWorker(order).repair_shard, name=spec.name, key=reader.key)


def _dry_run_repairer(reader: FeatureReader) -> Callable[[int], None]:
    """Return what a dry run does with a shard: read its images, and raise where they are not as they were."""

    def read_images(shard: int) -> None:
        for image in range(*reader.views.shard_images(shard)):
            if not reader.views.dataset.is_removed(image):
                reader.views.dataset.read_image_bytes(image)

    return read_images


def _record_canary(examiner: Examiner, where: str, reader: FeatureReader, spec: TeacherSpec, likeness: Likeness) -> None:
    """Record a canary anew, once the teacher has given the same tokens as the intact ones in the store."""
    loaded = load_teacher(spec, choose_device("auto").value)
    cosine = likeness(FeatureStore(examiner.objects).features(reader.key), loaded)
    if cosine is not None and not cosine > _MIN_COSINE:
        raise CacheMismatch(
            f"{spec.name} gives other tokens than {reader.key} holds (cosine {cosine:.4f}); its canary is not recorded anew"
        )
    replace_verified(examiner.objects, where, pack_canary(canary(loaded)))
