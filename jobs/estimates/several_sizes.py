"""What targets at several drawn sizes, as stage 3 has them, cost from a cache and live, and how near stored ones are to live ones.

Agreement is measured on a few views of the user's own images: the live teacher's patch tokens, normalised by these views' statistics at the
first size, against the same after encoding and decoding. Tokens of a smaller grid are compared after resampling, sampled ones also by their
mean with the mean of all. Of letterboxed views the tokens that see any of the image count alone, as in statistics and losses. Nothing is
written.
Axes: n views, m tokens of them, H and W grid, D channels, T sampled tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.choices import TARGET_SOURCES
from ...storage.core.errors import BadInput
from ...storage.features.codec import CODECS
from ...storage.features.layout import FeatureLayout
from ...storage.features.sampling import Positions, draw_positions, take_positions
from ...storage.features.statistics import NORMALISATIONS, Statistics
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.store import FeatureStore
from ...storage.views.input_size import size_text
from ...storage.views.pixels import fill_pixels
from ...storage.views.renderer_choice import choose_renderer
from ...storage.views.view_set import ViewSet
from ...student.model.recipe import TrainRecipe
from ...student.model.student import TargetSpec, refuse_unequal_grids
from ...teachers.encoders.photometric import pixels_seen_by
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ..extraction.extract import layout_of
from ..extraction.options import ExtractOptions
from ..extraction.stored_tokens import stored_tokens
from .cost_model import SizedSet, cached_or_live

_MEASURED_VIEWS = 8
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def at_each_size(recipe: TrainRecipe, specs: Mapping[str, TeacherSpec], options: ExtractOptions) -> dict[str, TeacherSpec]:
    """Return the teachers at each input size that a recipe draws, by "TEACHER at 256 px".

    Raises BadInput for sizes that a teacher does not take, tokens that cannot be stored, and sampled ones that cannot be trained on.
    """
    sized = {}
    for size_px in recipe.teacher.sizes_px or (None,):
        for name, own in specs.items():
            spec = own if size_px is None else own.at_size(size_px)
            label = f"{name} at {size_text(spec.preprocessing.size_px)} px"
            layout, sized[label] = layout_of(spec, options), spec
            try:
                refuse_unequal_grids(recipe, {name: TargetSpec(spec.cls_dim, spec.patch_dim, layout.grid, layout.tokens_per_view)})
            except BadInput as error:
                raise BadInput(f"{label}: {error}; leave --tokens-per-view out, so that whole grids are stored") from error
    return sized


def several_sizes(
    recipe: TrainRecipe, options: ExtractOptions, store: FeatureStore, sized: Mapping[str, TeacherSpec],
    seconds_per_view: Mapping[str, float], student_s: float, store_bytes_per_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Return bytes and hours of the two ways, by size and in all, and by codec the bytes and the agreement with the live teachers.

    `seconds_per_view` are the measured forwards by the labels of `sized`, `student_s` those of an image of the student's step.
    """
    dataset = store.dataset(options.data)
    rows, samples = len(dataset) * options.views.views_per_image, recipe.run.steps * recipe.run.batch_size
    layouts = {label: layout_of(spec, options) for label, spec in sized.items()}
    sets = {label: SizedSet(layout.view_bytes, seconds_per_view[label], rows) for label, layout in layouts.items()}
    codecs = [name for name in CODECS if all(replace(layout, codec=name).can_be_stored for layout in layouts.values())]
    agreement, sampled, views = _agreement(options, store, sized, layouts, codecs)
    ways = cached_or_live(sets, len(recipe.teacher.sizes_px) or 1, samples, student_s, store_bytes_per_s)
    return {
        "samples": samples,
        "student_images_per_s": 1 / student_s,
        "sets": {
            label: {
                "bytes_of_a_view": one.row_bytes,
                "views_per_s": 1 / one.seconds_per_view,
                "bytes": one.new_bytes,
                "extraction_hours": one.extraction_s / 3600,
                **agreement[label][options.codec],
            }
            for label, one in sets.items()
        },
        "ways": {way: ways[way] for way in TARGET_SOURCES},
        "cached_costs_less_from_student": ways["cached_costs_less_from_student"],
        "codecs": {
            name: {
                "bytes": rows * sum(replace(layout, codec=name).view_bytes for layout in layouts.values()),
                **{key: float(np.mean([by_codec[name][key] for by_codec in agreement.values()])) for key in ("cosine", "relative_error")},
            }
            for name in codecs
        },
        **({"sampled": sampled} if sampled else {}),
        "agreement_of": f"patch tokens, normalised, stored and decoded, with the live teacher's on {views} views of {dataset.key}",
    }  # fmt: skip


def _agreement(
    options: ExtractOptions, store: FeatureStore, sized: Mapping[str, TeacherSpec], layouts: Mapping[str, FeatureLayout], codecs: list[str]
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, Any]], int]:
    """Return by set and codec how near stored tokens are to live ones, by set what a sample keeps, and the number of views."""
    views, images = _few_views(options, store)
    statistics: dict[str, Statistics] = {}
    measured, sampled, count = dict[str, dict[str, dict[str, float]]](), dict[str, dict[str, Any]](), 0
    for label, spec in sized.items():
        layout = layouts[label]
        raw, taught, good = _live_tokens(spec, replace(layout, tokens_per_view=None, in_image=False), views, images)
        count = len(good)
        moments = statistics.setdefault(spec.name, _statistics_of(raw[taught], count, options.normalisation))
        live = moments.normalize_patch(raw)
        stored = {name: CODECS[name].decode(*CODECS[name].encode(live)) for name in codecs}
        measured[label] = {name: _compared(tokens[taught], live[taught]) for name, tokens in stored.items()}
        if layout.tokens_per_view is not None:
            taught_nN = taught.reshape(count, -1)
            at = _positions(views, good, layout, taught_nN)
            kept = _mean_of(take_positions(stored[options.codec], at), np.take_along_axis(taught_nN, at.astype(np.int64), 1))
            of_means = _compared(kept, _mean_of(live.reshape(count, taught_nN.shape[1], -1), taught_nN))["cosine"]
            sampled[label] = {"tokens": layout.tokens_per_view, "of": math.prod(layout.grid), "cosine_of_means": of_means}
    return measured, sampled, count


def _few_views(options: ExtractOptions, store: FeatureStore) -> tuple[ViewSet, list[int]]:
    """Return the views that would be extracted, in memory over the store, and a few images at equal distances."""
    dry = FeatureStore(DryRunObjects(store.objects))
    dataset = dry.dataset(options.data)
    renderer = choose_renderer(dry.objects, dataset, options.views, options.images_per_shard, options.renderer)
    views = ViewSet.create(dry.objects, dataset, options.views, options.images_per_shard, renderer)
    return views, list(range(0, len(dataset), -(-len(dataset) // _MEASURED_VIEWS)))


def _live_tokens(spec: TeacherSpec, layout: FeatureLayout, views: ViewSet, images: list[int]) -> tuple[Floats, Bools, list[int]]:
    """Return a teacher's patch tokens (n, H, W, D) of the first view of each image that can be decoded, which see any of it, and those."""
    teacher, wanted = load_teacher(spec), spec.preprocessing.input
    tokens, taught, good = [], [], []
    for image in images:
        view, pixels, failed = views.draw_image(image).part(slice(0, 1)), np.empty((1, *wanted.shape), np.uint8), dict[str, str]()
        rows = np.array([image * views.views_per_image])
        fill_pixels(views, rows, view, [(wanted, pixels)], drawn_now=True, failed=failed)
        if failed:
            continue
        distortions = torch.from_numpy(views.spec.distortions(view, wanted.size_px))
        seen = pixels_seen_by("teacher", views.spec.photometric, torch.from_numpy(pixels), distortions)
        tokens.append(stored_tokens(teacher(seen), layout, None).patch.float().cpu().numpy())
        cells = views.spec.taught_cells(view.crop, wanted.size_px, layout.grid)
        taught.append(np.ones((1, *layout.grid), np.bool_) if cells is None else cells)
        good.append(image)
    if not good:
        raise BadInput(f"none of {len(images)} images of {views.dataset.key} can be decoded; look at the source, then index it again")
    return np.concatenate(tokens), np.concatenate(taught), good


def _statistics_of(raw_mD: Floats, views: int, method: str) -> Statistics:
    row = NORMALISATIONS[method]
    moments = row.measure(raw_mD.shape[1])
    moments.update(raw_mD)
    return row.freeze(None, moments, views)


def _positions(views: ViewSet, images: list[int], layout: FeatureLayout, taught_nN: Bools) -> Positions:
    """Return the cells that an extraction would keep of each image's first view (n, T)."""
    ids, each = [views.dataset.row(image).id for image in images], views.views_per_image
    taught = taught_nN.repeat(each, axis=0) if layout.in_image else None
    return draw_positions(views.spec.seed, ids, each, math.prod(layout.grid), layout.tokens_per_view or 0, taught)[::each]


def _mean_of(tokens_nND: Floats, taught_nN: Bools) -> Floats:
    """Return the mean of each view's taught tokens (n, D)."""
    weight_nN1 = (taught_nN / taught_nN.sum(axis=1, keepdims=True).clip(1))[..., None]
    return np.asarray((tokens_nND * weight_nN1).sum(axis=1), np.float32)


def _compared(stored: Floats, live: Floats) -> dict[str, float]:
    """Return the mean cosine over tokens, and the error's norm over the live tokens' norm."""
    left, right = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (stored, live))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    size = float(np.linalg.norm(right))
    return {
        "cosine": float(((left * right).sum(1) / np.maximum(norms, 1e-12)).mean()),
        "relative_error": float(np.linalg.norm(left - right)) / max(size, 1e-12),
    }
