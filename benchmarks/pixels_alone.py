"""A stream of pixels without targets, over views of photos in a folder: what the benchmarks of rendering share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.renderers import Renderer, fast
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.targets import Memory, Rendering
from eupe_pipeline.student.model.student import TargetSpec
from numpy.typing import NDArray
from torch import Tensor


class NoTargets:
    """A source of no targets: pixels alone."""

    @property
    def specs(self) -> Mapping[str, TargetSpec]:
        return {}

    def renderings(self, step: int) -> Sequence[Rendering]:
        return ()

    def largest_px(self) -> Mapping[str, Any]:
        return {}

    def inputs_px(self, step: int) -> Mapping[str, Any]:
        return {}

    def allocate(self, batch_size: int) -> Memory:
        return {}

    def at_step(self, memory: Memory, step: int) -> Memory:
        return dict(memory)

    def prefetch(self, rows_b: NDArray[np.int64], step: int) -> None:
        """Nothing is read."""

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Nothing is filled."""

    def resolve(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {}

    def identities(self) -> dict[str, Any]:
        return {}


def photo_views(folder: Path, renderer: Renderer | None = None) -> ViewSet:
    """Commit the views of the photos in `folder/photos`, in a store beside them; without a renderer by the fast one."""
    store = FeatureStore.create(str(folder / "store"))
    dataset = build_index(store.objects, str(folder / "photos"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(), 128, renderer or fast())
    for shard in range(views.shards):
        drawn = views.draw_shard(shard)
        fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, [], drawn_now=True)
        views.commit_shard(shard, drawn, {})
    return views
