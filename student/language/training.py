"""One stage of a language model's training, on one process or on ranks: steps by number, resume, what is kept.

    FILE.partial.safetensors   what is trained, AdamW's moments, the number of finished steps; replaced atomically
    FILE.safetensors           what was trained; it alone stands there when the stage is over

A step is a function of (seed, step) and of what the model has become: its entries come from keyed permutations, dropout is seeded by it.
So a stage that was stopped and resumed is the stage that was never stopped. The loss is the mean over all taught tokens of a step, however
ranks and micro-batches share it. Files hold full tensors, so a stage resumes with another number of ranks.
"""

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent
from ...storage.objects.atomic_files import TEMPORARY_PREFIX, fsync_folder, make_folder, translate_os_errors
from ...teachers.runtime.devices import mixed_precision
from ..data.order import KeyedPermutation
from ..model.draws import step_seed
from ..model.ranks import ALONE, Ranks
from ..model.sharding import clip_gradient_norm, distribute_like, full_cpu_tensors
from .model import Batch, SeeingModel
from .recipe import StageRecipe

PARTIAL = ".partial.safetensors"
_LOG_EVERY = 20
_MOMENTS = ("exp_avg", "exp_avg_sq")


def entries_of_step(step: int, batch_size: int, entries: int, seed: int, stage: str) -> list[int]:
    """Return which entries a step sees: epochs of keyed permutations, the last batch filled from the next."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(KeyedPermutation(entries, seed, f"vlm {stage}", place // entries)(np.array([place % entries]))[0]) for place in places]


def rate_at(recipe: StageRecipe, steps: int, step: int) -> float:
    """Return the learning rate of a step: up in a line, then down to 0 in half a cosine, as transformers' schedule with warm-up."""
    warmup = math.ceil(steps * recipe.warmup_share)
    if step < warmup:
        return recipe.learning_rate * step / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class StageWork:
    """A stage, ready to be trained."""

    name: str
    recipe: StageRecipe
    steps: int
    entries: int
    seed: int
    file: Path
    micro_batch: int
    keep_every: int
    device: torch.device
    precision: str
    texts: Callable[[list[int]], Batch]
    """The batch of some entries."""
    tokens: Callable[[list[int]], Tensor | None]
    """Patch tokens (P, N, D) of those entries that have a picture, None without any."""
    on_event: OnEvent


class StageTraining:
    """A stage under way; `done` counts finished steps."""

    def __init__(self, work: StageWork, model: SeeingModel, trained: Mapping[str, nn.Parameter], ranks: Ranks = ALONE) -> None:
        self.work, self.model, self.trained, self.ranks, self.done = work, model, trained, ranks, 0
        recipe = work.recipe
        self.optimizer = torch.optim.AdamW(
            list(trained.values()), lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay
        )
        self.partial = work.file.with_name(work.file.name.removesuffix(".safetensors") + PARTIAL)
        self.last_loss = float("nan")
        if self.partial.is_file():
            self._restore()

    def train(self) -> None:
        """Take the missing steps and keep what was trained; raises `BadInput` when the loss is not finite."""
        self.model.train()
        started, first = time.perf_counter(), self.done
        while self.done < self.work.steps:
            self._step()
            if self.done % self.work.keep_every == 0 and self.done < self.work.steps:
                self._keep(self.partial, with_moments=True)
            if self.done % _LOG_EVERY == 0 or self.done == self.work.steps:
                self._report((self.done - first) / (time.perf_counter() - started))
        self._keep(self.work.file, with_moments=False)
        if self.ranks.first:
            self.partial.unlink(missing_ok=True)
        self.ranks.barrier()

    def _step(self) -> None:
        work, step = self.work, self.done
        torch.manual_seed(step_seed(work.seed, step, self.ranks.number))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(work.recipe, work.steps, step)
        start, stop = self.ranks.span(work.recipe.batch_size)
        mine = entries_of_step(step, work.recipe.batch_size, work.entries, work.seed, work.name)[start:stop]
        parts = [mine[at : at + work.micro_batch] for at in range(0, len(mine), work.micro_batch)]
        batches = [work.texts(part) for part in parts]
        counts = torch.tensor([float(sum(batch.taught for batch in batches)), float(len(parts))], dtype=torch.float64)
        taught = float(self.ranks.sum(counts.to(self._sums_on()))[0])
        if not taught:
            raise BadInput(f"no token of step {step} of {work.name} is an answer's, so nothing is learnt; look at the conversations")
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number in range(self._most_parts(len(parts))):  # ranks gather weights together, so all take equally many forwards
            part, batch, share = (parts[number], batches[number], 1.0) if number < len(parts) else (parts[0], batches[0], 0.0)
            loss = self._loss(batch, work.tokens(part)) * (share * self.ranks.count / taught)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / self.ranks.count
        clip_gradient_norm(list(self.trained.values()), work.recipe.clip_norm)
        self.optimizer.step()
        self.last_loss = float(self.ranks.sum(torch.tensor([total], dtype=torch.float64).to(self._sums_on())))
        self.done = step + 1
        if not math.isfinite(self.last_loss):  # before it is kept, and before a figure is made of it
            raise BadInput(
                f"the loss of {work.name} is {self.last_loss} at step {step}, so it learns nothing; a lower learning_rate may help"
            )

    def _loss(self, batch: Batch, patch_PND: Tensor | None) -> Tensor:
        device = self.work.device
        with mixed_precision(device, self.work.precision):
            loss: Tensor = self.model(*(part.to(device) for part in batch), None if patch_PND is None else patch_PND.to(device))
        return loss

    def _sums_on(self) -> torch.device:
        return self.work.device if self.ranks.count > 1 else torch.device("cpu")

    def _most_parts(self, mine: int) -> int:
        largest = max(rank_stop - rank_start for rank_start, rank_stop in self._spans())
        return max(mine, -(-largest // self.work.micro_batch))

    def _spans(self) -> list[tuple[int, int]]:
        return [Ranks(number, self.ranks.count).span(self.work.recipe.batch_size) for number in range(self.ranks.count)]

    def _report(self, steps_per_s: float) -> None:
        if self.ranks.first:
            left = self.work.steps - self.done
            self.work.on_event(
                {"event": "progress", "stage": self.work.name, "done": self.done, "total": self.work.steps, "unit": "steps",
                 "rate": steps_per_s, "seconds_left": left / steps_per_s, "loss": self.last_loss}
            )  # fmt: skip

    def _keep(self, file: Path, *, with_moments: bool) -> None:
        """Write what is trained; collective where it is shared out."""
        tensors = full_cpu_tensors({f"model.{name}": parameter for name, parameter in self.trained.items()})
        if with_moments:
            for moment in _MOMENTS:
                states = {name: self.optimizer.state[parameter][moment] for name, parameter in self.trained.items()}
                tensors |= full_cpu_tensors({f"{moment}.{name}": state for name, state in states.items()})
        if self.ranks.first:
            write_tensors(file, tensors, {"step": str(self.done)})
        self.ranks.barrier()

    @torch.no_grad()
    def _restore(self) -> None:
        tensors, step = read_tensors(self.partial)
        wanted = {f"{kind}.{name}" for kind in ("model", *_MOMENTS) for name in self.trained}
        if set(tensors) != wanted or not 0 < step < self.work.steps:
            raise CacheDamaged(f"{self.partial} is not the state of this training; move it elsewhere to begin the stage anew")
        load_trained(self.trained, {name: tensors[f"model.{name}"] for name in self.trained}, self.partial)
        for name, parameter in self.trained.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{moment: distribute_like(tensors[f"{moment}.{name}"], parameter).to(parameter.device) for moment in _MOMENTS},
            }
        self.done = step


@torch.no_grad()
def load_trained(trained: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Put tensors of a file into a model, also one that is shared out; raises `CacheDamaged` for others."""
    for name, parameter in trained.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise CacheDamaged(f"{file} does not hold {name} of {tuple(parameter.shape)}; move it elsewhere to train it anew")
        parameter.copy_(distribute_like(tensors[name], parameter))


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of tensors at once or not at all, without a second copy in memory; raises `StoreUnavailable`."""
    make_folder(file.parent)
    temporary = file.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{file.name}"[:200])
    try:
        with translate_os_errors(file, sum(tensor.nbytes for tensor in tensors.values())):
            save_file(dict(tensors), temporary, dict(metadata))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(file.parent)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of a file and its step; raises `CacheDamaged`."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, int(opened.metadata()["step"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CacheDamaged(f"{file} cannot be read ({error}); move it elsewhere to train that stage anew") from error
