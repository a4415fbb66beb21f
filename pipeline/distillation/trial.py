"""One trial step: how many views go through a student at once, and how many images a second that gives.

The student is built with its adapters and optimiser as training builds them and takes real steps on random pixels and targets, at its
largest input. Batches double until memory would not hold the next one, or, on a CPU, until a view gets no cheaper. Memory is estimated
before it is taken, from what autograd keeps of one image, since a CPU that runs out is killed without a word; running out of a
GPU's ends the search. Not timed: reading and decoding, which training does beside its steps.
Axes: B images, H and W grid, D channels.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ...jobs.estimates.training import student_cost
from ...jobs.extraction.batch_size import is_out_of_memory
from ...jobs.training.train import initial_student
from ...storage.core.errors import BadInput
from ...storage.views.input_size import area_px, size_hw, size_text
from ...student.model.losses import distillation_loss
from ...student.model.optimizers import build_optimizer
from ...student.model.ranks import ALONE
from ...student.model.recipe import TrainRecipe
from ...student.model.student import Student, TargetSpec
from ...teachers.encoders.tokens import SampledTokens, Tokens
from ...teachers.runtime.devices import allow_tf32, attention_kernel, autocast, choose_device, choose_precision
from ...teachers.runtime.host_memory import keep_freed_memory
from .facts import DeviceFacts, device_facts

_FIRST = {"cpu": 8, "cuda": 32}
_MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.9}
_GAIN = 1.05  # on a CPU a doubling must make a view this much cheaper
_LARGEST_CPU = 512
_LONGEST_S = 20.0  # of one step: a stop waits for it


@dataclass(frozen=True)
class Trial:
    """What a trial found."""

    fits: int
    """Views that go through the student at once."""
    images_per_s: float
    why: str
    """What ended the search."""
    tried: Mapping[int, float] = field(default_factory=dict)
    """Images a second by batch."""


def trial_step(
    recipe: TrainRecipe, targets: Mapping[str, TargetSpec], *, most: int | None = None, device: DeviceFacts | None = None
) -> Trial:
    """Return the largest power of two of views that is worth it, at most `most` (default: the recipe's batch), and its speed.

    Raises BadInput when not even the smallest batch fits.
    """
    chosen = device_facts(choose_device(recipe.device).value) if device is None else device
    allow_tf32(chosen.kind)
    keep_freed_memory(chosen.kind)
    single = replace(recipe, run=replace(recipe.run, batch_size=1, accumulate=1))
    cost = student_cost(single, targets, ALONE)
    room = chosen.memory_bytes * _MEMORY_SHARE[chosen.kind] - cost["state_bytes"]
    bound = min(most or recipe.run.batch_size, _LARGEST_CPU if chosen.kind == "cpu" else 1 << 20)
    tried: dict[int, float] = {}
    views, why = min(_FIRST[chosen.kind], bound), f"{bound:,} views are all that a step has"
    with torch.random.fork_rng():
        student = initial_student(recipe, targets).to(chosen.kind)
        optimizer = build_optimizer(student, recipe.optimizer)
        while views <= bound:
            if views * cost["activation_bytes"] > room:
                why = (
                    f"{views:,} views would take {views * cost['activation_bytes'] / 1e9:.1f} GB of {chosen.memory_bytes / 1e9:.1f} GB free"
                )
                break
            try:
                rate = views / _step_seconds(student, optimizer, recipe, targets, views, chosen.kind)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                why = f"{views:,} views ran out of memory"
                break
            if chosen.kind == "cpu" and tried and rate < _GAIN * max(tried.values()):
                why = f"{views:,} views at once are no faster ({rate:,.0f} images/s)"
                break
            tried[views] = rate
            if views / rate > _LONGEST_S:
                why = f"a step of {views:,} views takes {views / rate:.0f} s"
                break
            views *= 2
    if not tried:
        largest = size_text(max(recipe.student.sizes_px, key=area_px))
        raise BadInput(
            f"not even {min(_FIRST[chosen.kind], bound)} views of {recipe.student.architecture} at {largest} px fit: "
            f"{why}; choose a smaller --student, or smaller photos' sizes by student.sizes_px"
        )
    fits = max(tried)
    return Trial(fits, tried[fits], why, tried)


def _step_seconds(
    student: Student, optimizer: torch.optim.Optimizer, recipe: TrainRecipe, specs: Mapping[str, TargetSpec], views: int, device: str
) -> float:
    """Return the seconds of the faster of two steps; before them goes one that chooses kernels and maps memory."""
    size_px = max(recipe.student.sizes_px, key=area_px)
    pixels_BHWC = torch.randint(0, 256, (views, *size_hw(size_px), 3), dtype=torch.uint8, device=device)
    targets = {name: _random_targets(spec, views, device) for name, spec in specs.items()}
    precision = choose_precision(recipe.precision, device).value
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        student.train()
        with autocast(device, precision):
            predicted = student(pixels_BHWC, {name: target for name, target in targets.items() if isinstance(target, SampledTokens)})
        loss, _ = distillation_loss(predicted, targets, replace(recipe.loss, cls="cosine"), recipe.teacher.weights)  # random targets
        with attention_kernel(device):
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _random_targets(spec: TargetSpec, views: int, device: str) -> Tokens | SampledTokens:
    cls_BD = None if spec.cls_dim is None else torch.randn(views, spec.cls_dim, device=device)
    if spec.tokens is None:
        return Tokens(cls_BD, torch.randn(views, *spec.grid, spec.patch_dim, device=device))
    positions = torch.stack([torch.randperm(spec.grid[0] * spec.grid[1])[: spec.tokens] for _ in range(views)]).to(device)
    return SampledTokens(cls_BD, torch.randn(views, spec.tokens, spec.patch_dim, device=device), positions, spec.grid)
