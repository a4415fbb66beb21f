"""Estimate what a training run will need before it starts: parameters, memory of a rank, bytes to read.

Sizes are computed, not guessed: the student is built on torch's meta device, which allocates nothing, and one forward pass there counts
the bytes that autograd would keep for an image, in fp32 (bf16 autocast keeps less). What is left out: the allocator's waste, the
library's workspaces, a live teacher's own activations. Reading is given a step and a second at a stated rate, because the rate is what
a run will show.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...storage.core.choices import ResizeOn
from ...storage.core.events import ignore_event
from ...storage.core.urls import is_url
from ...storage.features.features import FeatureReader
from ...storage.images.hold_out import drawn_images
from ...storage.views.input_size import SizePx, area_px, as_size, size_hw
from ...storage.views.view_set import ViewSet
from ...student.data.prefetch import slot_bytes, slots_within
from ...student.data.sized import cached_sizes, refuse_sampled_sizes
from ...student.data.targets import STUDENT, CachedTargets, Memory
from ...student.model.losses import described
from ...student.model.ranks import Ranks, rank_span
from ...student.model.recipe import TrainRecipe
from ...student.model.student import Student, TargetSpec, count_parameters, refuse_losses, refuse_unequal_grids
from ...teachers.encoders.build import try_sizes
from ...teachers.encoders.tokens import SampledTokens, gather_tokens
from ...teachers.encoders.training_settings import set_activation_checkpointing
from ...teachers.registry.licences import refuse_stray, refuse_terms
from ..runs.licences import terms_field
from ..training.data import Part, cached_targets, open_parts
from ..training.hold_out import check_hold_out
from ..training.layers import trained_layers
from ..training.options import TrainOptions, check_teachers_given
from ..training.start_checks import refuse_followed_angle, refuse_other_aspects, target_grids, training_terms
from ..training.train import architecture_of, initial_student, refuse_other_views, student_runs
from ..training.versions import recorded_versions

_OPTIMIZER_MOMENTS = 2  # AdamW and LAMB alike
_FP32_BYTES = 4
_ASSUMED_IMAGES_PER_S = 1000
_SAMPLED_IMAGES = 256


def plan_training(options: TrainOptions) -> dict[str, Any]:
    """Return the plan of a run: `data` and `features` by key, `students` with parameters and memory, `reading`; raises as `train`."""
    check_teachers_given(options)
    recipe, students, out = options.recipe, options.students, str(options.out)
    store = options.open_store()
    complete = options.complete and options.on_miss == "refuse"
    shares, versions = recipe.data.shares, recorded_versions(options, store, out)
    parts = open_parts(
        store, options.features, options.data, shares, subsets=options.subsets, complete=complete, versions=versions,
        sizes_px=cached_sizes(recipe),
    )  # fmt: skip
    readers = parts[0].readers
    if is_url(out) or not any(Path(out).rglob("recipe.json")):  # a run that goes on has its views in its identities
        refuse_other_views(recipe, parts)
    check_hold_out(recipe.data.hold_out, parts, ignore_event)
    refuse_followed_angle(recipe, complete=options.complete)
    ranks = Ranks(0, max(1, options.workers))
    rank_span(recipe.run.batch_size, 0, ranks.count)
    specs = CachedTargets(readers, trained_layers(recipe.teacher, readers)).specs
    runs = student_runs(recipe, students, Path())
    for student_recipe, _ in runs.values():
        if recipe.teacher.source == "cached":
            refuse_sampled_sizes(student_recipe, parts[0].by_size)
            refuse_unequal_grids(student_recipe, specs)
        refuse_losses(student_recipe, target_grids(recipe, parts[0]), specs)
        refuse_other_aspects(student_recipe, parts[0].views.spec, readers)
        try_sizes(architecture_of(student_recipe), student_recipe.student.sizes_px)
    every_reader = [reader for part in parts for reader in part.every_reader]
    terms, used = training_terms(options, every_reader, [student_recipe.student.init_from for student_recipe, _ in runs.values()])
    refuse_stray(options.terms, used, terms)
    refuse_terms(options.require_licence, terms)
    return {
        "dry_run": True,
        "out": out,
        "data": {part.views.dataset.key: data_share(recipe, part) for part in parts},
        "features": {reader.key: {"rows": reader.rows, "bytes": reader.stored_bytes()} for reader in every_reader},
        "students": {name: student_cost(student_recipe, specs, ranks) for name, (student_recipe, _) in runs.items()},
        "batch": batch_cost(recipe, parts[0], ranks, options.resize),
        "reading": reading_cost(recipe, parts),
        **({"losses": losses} if (losses := described(recipe.loss)) else {}),
        **terms_field(terms),
    }


def data_share(recipe: TrainRecipe, part: Part) -> dict[str, Any]:
    """Return what a run sees of a dataset, or of its subset: its share of the batches, and how often each image comes."""
    drawn = drawn_images(part.views.dataset, part.subset, recipe.data.hold_out)
    images = part.images if drawn is None else len(drawn)
    epochs = round(part.share * recipe.run.steps * recipe.run.batch_size / images, 2)
    of = {} if part.subset is None else {"subset": part.subset.key, "of_images": len(part.views.dataset)}
    held_out = {"held_out_images": part.images - images} if recipe.data.hold_out else {}
    return {"share": part.share, "images": images, "epochs": epochs, **of, **held_out}


def student_cost(recipe: TrainRecipe, specs: Mapping[str, TargetSpec], ranks: Ranks) -> dict[str, Any]:
    """Return parameters of a student with and without adapters, and the bytes that a rank's device holds for it."""
    with torch.device("meta"):
        student = initial_student(recipe, specs)
    parameters = count_parameters(student)
    shares = ranks.count if recipe.run.parallel == "fsdp" else 1
    state_bytes = parameters * _FP32_BYTES * (2 + _OPTIMIZER_MOMENTS) // shares
    if recipe.student.ema:
        state_bytes += parameters * _FP32_BYTES
    start, stop = ranks.span(recipe.run.batch_size)
    part = -(-(stop - start) // recipe.run.accumulate)
    activation_bytes = part * kept_bytes(student, recipe, specs)
    return {
        "parameters": parameters,
        "backbone_parameters": count_parameters(student.encoder),
        "state_bytes": state_bytes,
        "activation_bytes": activation_bytes,
        "device_bytes": state_bytes + activation_bytes,
    }


def kept_bytes(student: Student, recipe: TrainRecipe, specs: Mapping[str, TargetSpec]) -> int:
    """Return the bytes that autograd keeps of one image at the largest input size, without weights; the student is on the meta device."""
    size_px = max(recipe.student.sizes_px, key=area_px)
    weights = {parameter.untyped_storage()._cdata for parameter in student.parameters()}
    kept: list[Tensor] = []  # kept alive, or a storage's address may be given away

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    set_activation_checkpointing(student.encoder, recipe.run.recompute_activations)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = student.encoder(torch.empty(1, 3, *size_hw(size_px), device="meta"))
        for heads, spec in zip(student.adapters, specs.values(), strict=True):
            positions = None if spec.tokens is None else torch.empty(1, spec.tokens, dtype=torch.int64, device="meta")
            heads(tokens if positions is None else gather_tokens(tokens, SampledTokens(None, positions, positions, spec.grid)))
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(nbytes for address, nbytes in storages.items() if address not in weights)


def batch_cost(recipe: TrainRecipe, of: Part, ranks: Ranks, resize: ResizeOn = "host") -> dict[str, Any]:
    """Return the host memory of a rank's batches, which `run.prefetch_megabytes` bounds, and the device memory of one part's targets."""
    start, stop = ranks.span(recipe.run.batch_size)
    memory = slot_bytes(stop - start, _memory_of_one(recipe, of), _largest_inputs(recipe, of.readers), resize)
    layers = trained_layers(recipe.teacher, of.readers)
    grids = {name: 1 + len(layers.get(name, ())) for name in of.readers}
    floats = max(
        sum(
            (reader.cls_dim or 0) + grids[name] * math.prod(reader.layout.token_shape) * reader.patch_dim
            for name, reader in readers.items()
        )
        for readers in of.by_size.values() or [of.readers]
    )
    part = -(-(stop - start) // recipe.run.accumulate)
    return {
        "prefetch": slots_within(recipe.run.prefetch_megabytes, memory).described(),
        "targets_device_bytes": part * floats * _FP32_BYTES,
    }


def _memory_of_one(recipe: TrainRecipe, part: Part) -> Memory:
    layers = trained_layers(recipe.teacher, part.readers)
    return cached_targets([part], layers).allocate(1) if recipe.teacher.source == "cached" else {}


def _largest_inputs(recipe: TrainRecipe, readers: Mapping[str, FeatureReader]) -> dict[str, SizePx]:
    """Return the largest input in px by model, of teachers that are not loaded: a live one's own size is in its feature set's identity."""
    live = readers if recipe.teacher.source == "live" else {}
    size_of = {name: as_size(reader.identity["teacher"]["preprocessing"]["size_px"]) for name, reader in live.items()}
    largest = {name: max(recipe.teacher.sizes_px, key=area_px, default=size) for name, size in size_of.items()}
    return {STUDENT: max(recipe.student.sizes_px, key=area_px), **largest}


def reading_cost(recipe: TrainRecipe, parts: Sequence[Part]) -> dict[str, Any]:
    """Return bytes of images and targets a view, a step and a run, and the bandwidth that an assumed rate needs."""
    image_bytes = sum(part.share * _image_bytes(part.views, recipe) for part in parts)
    target_bytes = _target_bytes(recipe, parts[0]) if recipe.teacher.source == "cached" else 0
    view_bytes = image_bytes + target_bytes
    return {
        "image_bytes_a_view": round(image_bytes),
        "target_bytes_a_view": target_bytes,
        "bytes_a_step": round(view_bytes * recipe.run.batch_size),
        "bytes_a_run": round(view_bytes * recipe.run.batch_size * recipe.run.steps),
        f"megabytes_per_s_at_{_ASSUMED_IMAGES_PER_S}_images_per_s": round(view_bytes * _ASSUMED_IMAGES_PER_S / 1e6, 1),
    }


def _target_bytes(recipe: TrainRecipe, part: Part) -> int:
    """Return the bytes of one view's targets, the mean over the sizes that are drawn."""
    layers, sizes = trained_layers(recipe.teacher, part.readers), list(part.by_size.values()) or [part.readers]
    memories = [CachedTargets(readers, layers).allocate(1) for readers in sizes]
    return round(sum(tensor.nbytes for memory in memories for tensor in memory.values()) / len(sizes))


def _image_bytes(views: ViewSet, recipe: TrainRecipe) -> float:
    """Return the bytes behind one view's pixels: the stored ones where they serve the student's only size, else a sample's mean image."""
    stored = views.spec.pixels
    if stored is not None and recipe.student.sizes_px == (stored.size_px,) and recipe.teacher.source == "cached":
        return 3 * area_px(stored.size_px)
    dataset = views.dataset
    sampled = range(0, len(dataset), max(1, len(dataset) // _SAMPLED_IMAGES))
    return sum(dataset.row(index).length for index in sampled) / len(sampled)
