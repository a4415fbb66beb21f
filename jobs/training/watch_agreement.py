"""`train --evaluate agreement`: how far students agree with their teachers on held-out images, and how much farther on trained ones.

The images are those of the lowest ranks on both sides of the hold-out, as many of one as of the other, chosen once: every evaluation of a
run is of the same images. The targets are stored tokens, whether the run reads them or computes live ones. Beside a running extraction an
evaluation whose tokens are not there yet is left out and said; so is nothing that training waits for.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.hold_out import Int64s
from ...storage.store import FeatureStore
from ...storage.views.input_size import area_px
from ...student.model.student import Student, refuse_unequal_grids
from ...student.probes.measure_agreement import BATCH, Measurement, TokenSet, TokenSets, frozen_copy, warn_of_few
from ...student.training.learner import Learner
from .data import Part
from .options import Watch


class AgreementMeasure:
    """The evaluation of one run, or of several students in one pass."""

    def __init__(self, watch: Watch, store: FeatureStore, first: Learner, parts: Sequence[Part], on_event: OnEvent) -> None:
        nothing, rows_store = np.empty(0, np.int64), FeatureStore.open(store.url)
        # Without the shard cache: a sample lies in nearly as many shards as it has images, whole ones would push the training's out.
        readers = [{name: rows_store.features(reader.key) for name, reader in part.readers.items()} for part in parts]
        left_out = [nothing if part.subset is None else part.subset.left_out() for part in parts]
        self._sets = TokenSets([TokenSet(*pair) for pair in zip(readers, left_out, strict=True)])
        self._targets = self._sets.joined()[1]
        self._limit, self._share, self._on_event = watch.images, first.recipe.data.hold_out, on_event
        self._size_px = max(first.recipe.student.sizes_px, key=area_px)
        self._rows: tuple[Int64s, Int64s] | None = None
        largest = replace(first.recipe, student=replace(first.recipe.student, sizes_px=(self._size_px,)))
        refuse_unequal_grids(largest, self._targets.specs)  # of sampled tokens; live targets are of any grid, stored ones are not

    def measure(self, student: Student, learner: Learner) -> dict[str, Any]:
        """Return `held_out`, `trained` and their `gap`; {} where tokens are not there yet, and on further ranks. Collective."""
        device = learner.device.value
        copy = frozen_copy(student, learner.recipe.adapter.width, self._targets, device, learner.ranks)
        if copy is None or (rows := self._sampled()) is None:
            return {}
        run = learner.recipe.run
        batch_size = max(1, min(BATCH, run.batch_size // learner.ranks.count // run.accumulate))  # memory of a training step's part
        return Measurement(self._size_px, device, learner.precision.value, batch_size).both(copy, self._sets, *rows)

    def _sampled(self) -> tuple[Int64s, Int64s] | None:
        """Return the rows of held-out and of trained images, as many of each; None while their shards are being extracted."""
        if self._rows is None:
            candidates = [self._sets.sample(self._limit, self._share, held_out=side) for side in (True, False)]
            if not all(self._sets.are_there(rows) for rows in candidates):
                self._on_event({"event": "note", "text": "no agreement yet: the tokens of its images are still being extracted"})
                return None
            held_out, trained = (self._sets.with_tokens(rows) for rows in candidates)
            count = min(len(held_out), len(trained))
            if not count:
                raise BadInput("agreement has no image to measure: each of those that are held out failed in the extraction")
            warn_of_few(count, self._on_event)
            self._rows = held_out[:count], trained[:count]
        return self._rows

    def score(self, figures: dict[str, Any]) -> float:
        """Return the figure that chooses the best checkpoint: held-out agreement, the mean over teachers of class and patch cosine."""
        return float(figures["held_out"]["agreement"])

    def words(self, results: dict[str, Any]) -> str:
        """Return the figures in a line."""
        shown = [
            f"{name.replace('_', ' of the ')} {figures['held_out']['agreement']:.3f} held out, "
            f"{figures['trained']['agreement']:.3f} trained, gap {figures['gap']['agreement']:+.3f}"
            for name, figures in results.items()
        ]
        return f"{'; '.join(shown)} (mean cosine of class and patch tokens with the teachers)"
