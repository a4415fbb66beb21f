"""The parts of the demonstration's report beside its tables: patch tokens, neighbours, and what live teachers would have cost.

The cost is measured: each teacher's forward pass over views of this run, on this machine, times the samples that the stage trained on,
added to the seconds that the stage took from the cache.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.estimates.live_cost import live_teacher_cost
from ...jobs.extraction.options import TeacherRequest
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...teachers.registry.resolve import load_teacher, resolve_teacher
from ...teachers.runtime.devices import choose_device, choose_precision
from ..pictures.neighbours import example_images, example_queries, galleries
from ..pictures.patch_tokens import Encoders, Photo, patch_tokens
from ..pictures.pca import pictures
from ..pictures.similarity import similarity_pictures
from ..reports.report import Contents
from ..reports.store_health import health
from .demo_recipe import DemoRecipe

PHOTOS = 6
PICKED_PHOTOS = 3
NEIGHBOURS = 8


def demo_contents(
    dataset: ImageDataset, models: Mapping[str, tuple[str, int]], store: FeatureStore, features: Sequence[str], on_event: OnEvent
) -> Contents:
    """Return the report's pictures: tokens of a photo of each label by each model (name or run, px), neighbours, health of feature sets."""
    chosen = example_images(dataset, np.arange(len(dataset)), PHOTOS).tolist()
    photos = [Photo(dataset.label_names[dataset.row(image).label], dataset.read_image(image)) for image in chosen]
    sizes = dict(models.values())
    tokens = patch_tokens(Encoders(list(sizes), None, sizes, labels=list(models)), photos, on_event)
    readers = [store.features(key) for key in features]
    return Contents(
        pictures=pictures([photo.label for photo in photos], [photo.shown() for photo in photos], tokens),
        similarity=similarity_pictures(photos[:PICKED_PHOTOS], {label: patch[:PICKED_PHOTOS] for label, patch in tokens.items()}),
        neighbours={reader.key: galleries(reader, example_queries(reader), NEIGHBOURS, on_event) for reader in readers},
        health=[health(reader, on_event) for reader in readers],
    )


def live_comparison(
    store: FeatureStore, recipe: DemoRecipe, steps: Mapping[str, Any], teachers: tuple[TeacherRequest, ...], proxy: Path
) -> dict[str, dict[str, Any]]:
    """Return by stage the seconds as run and the seconds with live teachers, measured by forwards over this run's own views."""
    precision = choose_precision(recipe.extract.precision, choose_device("auto").value).value
    views = next(
        view_set for view_set in map(store.view_set, store.list_view_sets()) if view_set.views_per_image == recipe.extract.views_per_image
    )
    teachers_of_stage = {
        1: {request.name: resolve_teacher(request.name, size_px=request.size_px, precision=precision) for request in teachers},
        2: {"proxy": resolve_teacher(str(proxy), size_px=recipe.extract.proxy_size_px, precision=precision)},
    }
    comparison = {}
    for stage, specs in teachers_of_stage.items():
        cost = live_teacher_cost({name: load_teacher(spec) for name, spec in specs.items()}, views)
        run = recipe.stages[stage].recipe.run
        forward = sum(measured["seconds_per_view"] for measured in cost.values())
        cached = steps[f"train stage {stage}"]["seconds"]
        comparison[f"stage {stage}"] = {
            "cached_s": cached,
            "live_s": cached + run.steps * run.batch_size * forward,
            "basis": f"{', '.join(specs)}: {1e3 * forward:.2f} ms a view measured, × {run.steps * run.batch_size:,} samples",
        }
    return comparison
