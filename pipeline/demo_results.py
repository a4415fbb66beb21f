"""What the demonstration shows beside its tables: pictures of patch tokens, and what live teachers would have cost.

The cost is measured: each teacher's forward pass over views of this run, on this machine, times the samples that the stage trained on,
added to the seconds that the stage took from the cache.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..jobs.extract import TeacherRequest
from ..jobs.live_cost import live_teacher_cost
from ..storage.dataset import ImageDataset
from ..storage.store import FeatureStore
from ..storage.views import ViewSpec, draw, render
from ..student.devices import choose_device, choose_precision
from ..teachers.registry import load_teacher, resolve_teacher
from .demo_recipe import DemoRecipe
from .pca import PcaPicture, pictures

PHOTOS = 6


def demo_pictures(dataset: ImageDataset, models: Mapping[str, tuple[str, int]], photos: int = PHOTOS) -> list[PcaPicture]:
    """PCA pictures of the first photo of each of the first `photos` labels, for each model at its size (name or run, px)."""
    labels = dataset.labels()
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:photos]]
    images = [dataset.read_image(image) for image in chosen]
    tokens = {}
    for column, (name, size_px) in models.items():
        teacher = load_teacher(resolve_teacher(name, size_px=size_px))
        crops = [draw(ViewSpec(kind="center"), [""], np.array([image.shape[:2]], np.int32)).crop[0] for image in images]
        pixels = np.stack([render(image, crop, False, size_px) for image, crop in zip(images, crops, strict=True)])
        tokens[column] = teacher(torch.from_numpy(pixels)).patch_BHWD.numpy()
    names = [dataset.label_names[int(labels[image])] for image in chosen]
    return pictures(names, images, tokens)


def live_comparison(
    store: FeatureStore, recipe: DemoRecipe, steps: Mapping[str, Any], teachers: tuple[TeacherRequest, ...], proxy: Path
) -> dict[str, dict[str, Any]]:
    """Stage → seconds as run and seconds with live teachers, measured by forward passes over this run's own views."""
    precision = choose_precision(recipe.extract.precision, choose_device("auto").value).value
    views = next(one for one in map(store.view_set, store.list_view_sets()) if one.views_per_image == recipe.extract.views_per_image)
    behind = {
        1: {request.name: resolve_teacher(request.name, size_px=request.size_px, precision=precision) for request in teachers},
        2: {"proxy": resolve_teacher(str(proxy), size_px=recipe.extract.proxy_size_px, precision=precision)},
    }
    found = {}
    for stage, specs in behind.items():
        cost = live_teacher_cost({name: load_teacher(spec) for name, spec in specs.items()}, views)
        run = recipe.stages[stage].recipe.run
        forward = sum(one["seconds_per_view"] for one in cost.values())
        cached = steps[f"train stage {stage}"]["seconds"]
        found[f"stage {stage}"] = {
            "cached_s": cached,
            "live_s": cached + run.steps * run.batch_size * forward,
            "basis": f"{', '.join(specs)}: {1e3 * forward:.2f} ms a view measured, × {run.steps * run.batch_size:,} samples",
        }
    return found
