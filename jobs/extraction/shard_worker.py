"""The work on one shard, free of Ray: render its views, run every teacher, normalise, encode, commit.

A `ShardWorker` lives in an actor or in the caller's own process; both do exactly this. It is given two shards at a time: while one has the
teachers to itself, threads render the next batch and encode the last one, the shard before it is written, and the shard after it renders
its first batch. A shard counts only when its record stands, so all of this changes no byte of a store. Tokens are encoded batch by batch
into the shard's buffers, so that a shard never exists in fp32. Images that cannot be decoded, and views whose tokens carry nothing, are
left out by id and reason; anything else that fails is an error for the driver.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.errors import CacheDamaged, Interrupted
from ...storage.earlier_sets import EarlierSets
from ...storage.features.features import FeatureReader, LayerRows, TokenRows, refuse_tokens
from ...storage.features.kept_forwards import KeptForwards, sweep_forwards
from ...storage.features.layers import layer_target
from ...storage.features.phis import Covariance
from ...storage.features.sampling import Positions
from ...storage.features.statistics import NORMALISATIONS, Moments
from ...storage.sources.decode import Pixels
from ...storage.store import FeatureStore
from ...storage.views.photometric import MODES
from ...storage.views.pixels import fill_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input, Views, empty_views
from ...teachers.encoders.tokens import LayerTokens
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.device_resize import CutViews, require_same_bytes
from .batch_size import SizedTeacher
from .canaries import check_canary
from .rendering import FreshViews, RenderedBatch, RenderedShard, keep_batch
from .stored_tokens import stored_tokens
from .summary import ShardReport
from .transfers import Arriving, StoredTokens, busy_seconds, compute
from .work_orders import WorkOrder, gpu_use

TASKS_AT_ONCE = 2  # one with the teachers, one being written or rendering its first batch


Measure = Moments | Covariance
Sums = tuple[Measure | None, Measure]


@dataclass
class SampleMoments:
    """Moments (PHI-S: covariances) over one batch of sampled views: teacher → (class tokens or None, patch tokens).

    An intermediate layer's stand under its own name (`storage.features.layers`).
    """

    views: int
    moments: dict[str, Sums]


@dataclass
class _Target:
    """One feature set's share of a shard under work."""

    reader: FeatureReader
    buffer: TokenRows
    layers: LayerRows
    positions: Positions | None  # (views, T) of a sampled set
    refused: dict[str, str] = field(default_factory=dict)  # image id → why its tokens must not be stored
    copied: int = 0  # first rows that an earlier version of the dataset gave

    def positions_of(self, batch: RenderedBatch) -> Positions | None:
        """Return the grid positions of the tokens to be stored of a batch's views; None for whole grids."""
        return None if self.positions is None else self.positions[batch.rows]

    @classmethod
    def of(cls, reader: FeatureReader, views: int, shard: int) -> "_Target":
        """Return memory for a shard of so many views."""
        return cls(reader, reader.empty(views), reader.empty_layers(views, reader.layout.layers), reader.draw_positions(shard))

    def share(self, computed: LayerTokens, batch: RenderedBatch) -> StoredTokens:
        """Return what of a batch's tokens is stored, still on the device; of a pooled set (`pooled_features`) each view's mean."""
        tokens = computed.final
        if "pooled" in self.reader.identity["statistics"]:
            tokens = tokens._replace(patch_BHWD=tokens.patch_BHWD.mean(dim=(1, 2), keepdim=True))
        return stored_tokens(tokens, self.reader.layout, self.positions_of(batch), computed.layers)


class ShardWorker:
    """Loads the teachers of an order once, checks each against its canary, and then does shards, from up to two threads at once."""

    def __init__(self, order: WorkOrder) -> None:
        torch.set_num_threads(order.threads)
        self.order = order
        self.store = FeatureStore.open(order.store_url)
        self.views: ViewSet = self.store.view_set(order.view_set)
        self.teachers: dict[str, SizedTeacher] = {}
        sweep_forwards()
        self._kept = kept = None if order.kept_run is None else KeptForwards(order.kept_run)
        for spec in order.teachers:
            teacher = load_teacher(spec, order.devices.get(spec.name, order.device))
            self.teachers[spec.name] = SizedTeacher(teacher, order.batch_size, kept, order.layers.get(spec.name, ()))
            if order.compile:
                teacher.compile_encoder(self.teachers[spec.name].views)
            check_canary(self.store, teacher)
            if order.resize == "device":
                require_same_bytes(teacher.device)
        self._readers: dict[str, FeatureReader] = {}
        self._earlier_sets: dict[tuple[str, ...], EarlierSets] = {}
        self._turn = threading.Lock()  # the teachers belong to one shard at a time: two would finish together, and late
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make every task under way raise `Interrupted` at its next batch; what is not committed is dropped."""
        self._stopping.set()

    def _stop_if_asked(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("stopped between two batches; every shard that was committed stays")

    def measure(self, rows: list[int], names: list[str]) -> SampleMoments:
        """Return moments of the named teachers' raw tokens over some views; images that cannot be decoded are left out.

        Raises `CacheMismatch` for views that are committed already and whose image decodes to other pixels.
        """
        torch.set_num_threads(self.order.threads)
        inputs = {name: self._input(name) for name in names}
        pixels = {model_input: np.empty((len(rows), *model_input.shape), np.uint8) for model_input in inputs.values()}
        sampled, good = empty_views(len(rows)), []
        for n, row in enumerate(rows):
            self._stop_if_asked()
            view, drawn_now = self._view(row)
            sampled.crop[n], sampled.photometric[n], failed = view.crop[0], view.photometric[0], dict[str, str]()
            outputs = [(model_input, out[n : n + 1]) for model_input, out in pixels.items()]
            fill_pixels(self.views, np.array([row]), view, outputs, drawn_now=drawn_now, failed=failed)
            good += [] if failed else [n]
        if not good:
            return SampleMoments(0, {})
        sums = self._new_sums(names)
        for name, model_input in inputs.items():
            with self._turn:
                arriving = self._forward(name, pixels[model_input][good], sampled.chosen(good), _all_of)
            _add(sums, name, arriving.wait(), self._taught(name, sampled.chosen(good)))
        return SampleMoments(len(good), sums)

    def _view(self, row: int) -> tuple[Views, bool]:
        """Return one view, and whether it is drawn now because its shard is not committed yet."""
        committed = self.views.read_shard(row // self.views.group.shard_rows)
        if committed is not None:
            offset, views = row % self.views.group.shard_rows, committed
        else:
            image, offset = divmod(row, self.views.views_per_image)
            views = self.views.draw_image(image)
        return views.part(slice(offset, offset + 1)), committed is None

    def measure_shard(self, shard: int, names: list[str]) -> SampleMoments:
        """Return moments of the named teachers' raw tokens over a whole shard; keep tokens and pixels for `do_shard` if the order says so.

        The forwards are those of `do_shard`; moments are updated view by view, so that they do not depend on the batch's size.
        """
        torch.set_num_threads(self.order.threads)
        committed = self.views.read_shard(shard)
        views = committed or self.views.draw_shard(shard)
        fresh = FreshViews.of(self.views, len(views.crop)) if committed is None else None
        sums, measured = self._new_sums(names), 0
        with self._rendered(shard, views, fresh, names) as batches, self._turn:
            for batch in batches:
                self._stop_if_asked()
                good = self._decoded(batch, shard)
                if self._kept is not None and fresh is not None:
                    keep_batch(self._kept, shard, batch, views)
                measured += len(good)
                of_batch = views.part(batch.rows)
                for name in names:
                    raw, taught = self._kept_tokens(name, batch.pixels[self._input(name)], of_batch), self._taught(name, of_batch)
                    for view in good:
                        window = slice(view, view + 1)
                        _add(sums, name, raw.moved(itemgetter(window)), None if taught is None else taught[window])
        return SampleMoments(measured, sums if measured else {})

    def _new_sums(self, names: Iterable[str]) -> dict[str, Sums]:
        """Return empty sums of some teachers and of their layers."""
        measure, sums = NORMALISATIONS[self.order.normalisation].measure, dict[str, Sums]()
        for name in names:
            spec = self._spec(name)
            sums[name] = None if spec.cls_dim is None else measure(spec.cls_dim), measure(spec.patch_dim)
            sums |= {layer_target(name, layer): (None, measure(spec.patch_dim)) for layer in self.teachers[name].layers}
        return sums

    def _decoded(self, batch: RenderedBatch, shard: int) -> list[int]:
        """Return the places in a batch of views whose image could be decoded."""
        first_image, views_per_image = self.views.shard_images(shard)[0], self.views.views_per_image
        images = [first_image + (batch.first + view) // views_per_image for view in range(batch.count)]
        return [view for view, image in enumerate(images) if self.views.dataset.row(image).id not in batch.failed]

    def _kept_tokens(self, name: str, pixels_BHWC: Pixels, views: Views) -> StoredTokens:
        """Compute a batch's raw tokens, and keep each forward."""
        raw = self._forward(name, pixels_BHWC, views, _all_of).wait()
        self.teachers[name].keep(self.teachers[name].views, pixels_BHWC, self._seen(name, views), raw)
        return raw

    def _taught(self, name: str, views: Views) -> NDArray[np.bool_] | None:
        """Return which of a teacher's tokens (n, H, W) see any of the image: statistics are of those; None for all."""
        return self.views.spec.taught_cells(views.crop, self._input(name).size_px, self._spec(name).grid)

    def _rendered(
        self, shard: int, views: Views, fresh: FreshViews | None, names: Iterable[str], start: int = 0, *, cut: bool = False
    ) -> RenderedShard:
        """Return a shard's batches for some teachers: the same whether their tokens are measured or stored."""
        names = list(names)
        views_per_batch = max((self.teachers[name].views for name in names), default=1)
        inputs = {self._input(name) for name in names}
        return RenderedShard(
            self.views, shard, views, inputs, views_per_batch, self.order.render_threads, fresh, start, self._kept, cut=cut
        )

    def _input(self, name: str) -> Input:
        return self._spec(name).preprocessing.input

    def _spec(self, name: str) -> TeacherSpec:
        return self.teachers[name].teacher.spec

    def _forward(self, name: str, pixels_BHWC: Pixels | CutViews, views: Views, share: Callable[[LayerTokens], StoredTokens]) -> Arriving:
        """Start the forward of one teacher, and return the `share` of its raw fp32 tokens on its way to the host."""
        teacher, seen_BP = self.teachers[name], self._seen(name, views)
        return compute(lambda: share(teacher.with_layers(pixels_BHWC, seen_BP)), teacher.teacher.device)

    def _seen(self, name: str, views: Views) -> NDArray[np.float32] | None:
        """Return the distortions that a teacher sees, None when teachers see none."""
        spec = self.views.spec
        return spec.distortions(views, self._input(name).size_px) if MODES[spec.photometric].seen_by_teacher else None

    def do_shard(self, shard: int, feature_keys: Mapping[str, str]) -> ShardReport:
        """Compute and commit one shard of the given feature sets (teacher → key); committed ones are left out.

        Raises `Interrupted` after `stop`.
        """
        torch.set_num_threads(self.order.threads)  # a property of each thread
        readers = {name: self._reader(key) for name, key in feature_keys.items()}
        earlier = self._earlier(list(readers.values()))
        committed = self.views.read_shard(shard) or earlier.begin_views(shard)
        views = committed or self.views.draw_shard(shard)
        report = ShardReport(shard, len(views.crop))
        targets = {name: _Target.of(reader, report.views, shard) for name, reader in readers.items() if reader.group.record(shard) is None}
        if committed is not None and not targets:
            return report.of_records([reader.group.record(shard) for reader in readers.values()])
        for target in targets.values():
            target.copied, target.refused = earlier.copy_rows(shard, target.reader, target.buffer, target.layers)
        report.copied = min((target.copied for target in targets.values()), default=0)
        fresh = FreshViews.of(self.views, report.views) if committed is None else None
        for start in sorted({target.copied for target in targets.values()} or {0}):
            group = {name: target for name, target in targets.items() if target.copied == start}
            cut = self.order.resize == "device" and self._kept is None  # what is kept is found by a rendered view's pixels
            with self._rendered(shard, views, fresh, group, start, cut=cut) as batches:
                self._through_teachers(batches, views, group, report)
        self._stop_if_asked()
        self._commit(views, fresh, targets, report)
        return report

    def _earlier(self, readers: list[FeatureReader]) -> EarlierSets:
        """Return what earlier versions of the dataset hold; found once for the same feature sets."""
        keys = tuple(reader.key for reader in readers)
        if keys not in self._earlier_sets:
            self._earlier_sets[keys] = EarlierSets.of(self.store, self.views, readers)
        return self._earlier_sets[keys]

    def repair_shard(self, shard: int, name: str, key: str) -> None:
        """Compute one committed shard of a teacher's feature set again, and replace its damaged parts.

        Its views must be intact. Raises `CacheMismatch` where the intact parts of the shard are not what is computed now.
        """
        torch.set_num_threads(self.order.threads)
        reader, views, record = self._reader(key), self.views.read_shard(shard), self.views.group.record(shard)
        if views is None or record is None:
            raise CacheDamaged(f"shard {shard} of views/{self.views.key} is not committed, and these features are made from it")
        target, report = _Target.of(reader, len(views.crop), shard), ShardReport(shard, len(views.crop))
        inputs, per_batch = {self._input(name)}, self.teachers[name].views
        with RenderedShard(self.views, shard, views, inputs, per_batch, self.order.render_threads) as batches:
            self._through_teachers(batches, views, {name: target}, report)
        reader.repair_shard(shard, target.buffer, {**report.failed, **target.refused}, record.digest, target.layers)

    def _through_teachers(
        self, batches: Iterable[RenderedBatch], views: Views, targets: Mapping[str, _Target], report: ShardReport
    ) -> None:
        """Run every batch through every teacher; a batch is encoded while the next one is computed."""
        encoding: Future[None] | None = None
        before = sum(teacher.backoffs for teacher in self.teachers.values())
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder, self._turn:
            taken = {name: self.teachers[name].taken for name in targets}
            started = time.perf_counter()
            for batch in batches:
                self._stop_if_asked()
                report.failed |= batch.failed
                report.add("decode", batch.seconds)
                seen = {name: batch.seen(self._input(name)) for name in targets}
                tokens = {
                    name: self._forward(name, pixels, views.part(batch.rows), partial(targets[name].share, batch=batch))
                    for name, pixels in seen.items()
                }
                _finish(encoding)
                encoding = encoder.submit(self._encode, targets, batch, tokens, report)
            turn_s = time.perf_counter() - started
            report.batch_sizes |= {name: self.teachers[name].views for name in targets}
            report.backoffs += sum(teacher.backoffs for teacher in self.teachers.values()) - before
            report.taken |= {name: self.teachers[name].taken - before_it for name, before_it in taken.items()}
            report.gpu_use = gpu_use(self.teachers[name].teacher.device for name in targets)
        _finish(encoding)
        report.add("wait", max(0.0, turn_s - report.seconds.get("forward", 0.0)))

    def _reader(self, key: str) -> FeatureReader:
        if key not in self._readers:
            self._readers[key] = self.store.features(key)
        return self._readers[key]

    def _encode(self, targets: Mapping[str, _Target], batch: RenderedBatch, tokens: Mapping[str, Arriving], report: ShardReport) -> None:
        """Normalise and encode one batch's tokens into the shard's buffers; waits for the device here, so that its feeder need not."""
        arrived = {name: pending.wait() for name, pending in tokens.items()}
        report.add("forward", busy_seconds(list(tokens.values())))
        with report.timed("encode"):
            for name, target in targets.items():
                self._fill(target, batch, arrived[name], report.shard)

    def _fill(self, target: _Target, batch: RenderedBatch, tokens: StoredTokens, shard: int) -> None:
        statistics = target.reader.statistics
        cls = None if tokens.cls_BD is None else statistics.normalize_cls(tokens.cls_BD.numpy())
        patch = statistics.normalize_patch(tokens.patch.numpy())
        layers = {layer: statistics.layers[layer].normalize_patch(values.numpy()) for layer, values in tokens.layers.items()}
        bad = self._refuse(target, cls, patch, layers, batch, shard)
        for values in (patch, *layers.values()):
            values[bad] = 0.0  # never stored; encoding must not meet a NaN
        encoded = target.reader.encode(cls, patch, target.positions_of(batch))
        of_layers = target.reader.encode_layers(layers)
        pairs = [(target.buffer, encoded), *((target.layers[layer], of_layers[layer]) for layer in target.layers)]
        for stored, fresh in (pair for left, right in pairs for pair in zip(left, right, strict=True)):
            if stored is not None and fresh is not None:
                stored[batch.first : batch.first + len(patch)] = fresh

    def _refuse(
        self, target: _Target, cls: NDArray[np.float32] | None, patch: NDArray[np.float32], layers: Mapping[int, NDArray[np.float32]],
        batch: RenderedBatch, shard: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Mark the views whose tokens must not be stored, and note their images unless those failed to decode."""
        first_image, bad = self.views.shard_images(shard)[0], np.zeros(len(patch), np.bool_)
        for view in range(len(patch)):
            of_layers = {layer: values[view] for layer, values in layers.items()}
            reason = refuse_tokens(None if cls is None else cls[view], patch[view], target.reader.codec, of_layers)
            if reason is not None:
                image_id = self.views.dataset.row(first_image + (batch.first + view) // self.views.views_per_image).id
                bad[view] = True
                if image_id not in batch.failed:
                    target.refused.setdefault(image_id, f"{target.reader.name}: {reason}")
        return bad

    def _commit(self, views: Views, fresh: FreshViews | None, targets: Mapping[str, _Target], report: ShardReport) -> None:
        with report.timed("write"):
            if fresh is not None:
                self.views.commit_shard(report.shard, views, report.failed, fresh.pixels)
            views_record = self.views.group.record(report.shard)
            assert views_record is not None
            undecodable = dict(report.failed)
            for target in targets.values():
                failed = {**undecodable, **target.refused}
                record = target.reader.commit_shard(report.shard, target.buffer, failed, views_record.digest, target.layers)
                report.bytes += sum(entry.bytes for entry in record.objects.values())
                report.failed |= target.refused


def _all_of(tokens: LayerTokens) -> StoredTokens:
    return StoredTokens(*tokens.final, tokens.layers)


def _add(sums: Mapping[str, Sums], name: str, tokens: StoredTokens, taught: NDArray[np.bool_] | None) -> None:
    """Add a teacher's tokens of some views to its sums, and to those of its layers; of patch tokens those that are `taught` (None: all)."""
    (cls, patch), which = sums[name], ... if taught is None else taught
    patch.update(tokens.patch.numpy()[which])
    if cls is not None and tokens.cls_BD is not None:
        cls.update(tokens.cls_BD.numpy())
    for layer, values in tokens.layers.items():
        sums[layer_target(name, layer)][1].update(values.numpy()[which])


def _finish(encoding: Future[None] | None) -> None:
    """Wait until a batch is encoded: two batches of tokens exist at most. Raises what its thread raised."""
    if encoding is not None:
        encoding.result()
