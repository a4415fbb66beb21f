"""Training of a head on a frozen encoder: bit-equal resume, progress with rate and time left.

    FILE.safetensors     the head, its optimiser's state, and the number of finished steps; replaced atomically

A step is a function of (seed, step) and what the head has become: batches come by step, dropout is seeded by step. So a head that was
stopped and resumed is the head that was never stopped. Batches are made by threads while the encoder works. Axes as in `dense_head`.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent
from ..model.draws import step_seed
from .dense_head import HeadRecipe, build_optimizer, set_schedule
from .evaluation_records import write_partial

Head = TypeVar("Head", bound=nn.Module)
Batch = TypeVar("Batch")
KEEP_EVERY = 500
_LOG_EVERY = 20


class HeadTraining(Generic[Head, Batch]):
    """A head with its optimiser; `done` counts finished steps. `loss_of(head, batch, step)` is the mean loss of a batch."""

    def __init__(
        self, head: Head, recipe: HeadRecipe, file: Path, *, seed: int, make_batch: Callable[[int], Batch],
        loss_of: Callable[[Head, Batch, int], Tensor], on_event: OnEvent, optimizer: torch.optim.Optimizer | None = None,
    ) -> None:  # fmt: skip
        self.head, self.recipe, self.file, self.seed = head, recipe, file, seed
        self.make_batch, self.loss_of, self.on_event = make_batch, loss_of, on_event
        self.optimizer, self.done, self.last_loss = optimizer or build_optimizer(head, recipe), 0, float("nan")
        if file.is_file():
            self._restore()

    def train_until(self, stop: int) -> None:
        """Take the steps that are missing before `stop`, and save the state; raises `BadInput` when the loss is not finite."""
        if self.done >= stop:
            return
        self.head.train()
        started, first = time.perf_counter(), self.done
        for batch in _prefetch(self.make_batch, self.done, stop):
            self._step(batch)
            if self.done % KEEP_EVERY == 0:
                self._save()
            if self.done % _LOG_EVERY == 0 or self.done == stop:
                self._report((self.done - first) / (time.perf_counter() - started))
        self._save()

    def _step(self, batch: Batch) -> None:
        step = self.done
        torch.manual_seed(step_seed(self.seed, step))
        set_schedule(self.optimizer, self.recipe, step)
        loss = self.loss_of(self.head, batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.last_loss, self.done = float(loss.detach()), step + 1
        if not math.isfinite(self.last_loss):  # before the state is kept, and before a figure is made of it
            raise BadInput(f"the head's loss is {self.last_loss} at step {step}, so it learns nothing; look at the labels and the model")

    def _report(self, steps_per_s: float) -> None:
        self.on_event(
            {"event": "progress", "stage": "head", "done": self.done, "total": self.recipe.steps, "unit": "steps", "rate": steps_per_s,
             "seconds_left": (self.recipe.steps - self.done) / steps_per_s, "loss": self.last_loss}
        )  # fmt: skip

    def _save(self) -> None:
        tensors = {f"head.{name}": tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
        write_partial(self.file, lambda: save(tensors, {"step": str(self.done)}), self.on_event)

    def _restore(self) -> None:
        try:
            with safe_open(self.file, "pt") as opened:
                step, tensors = int(opened.metadata()["step"]), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            self.head.load_state_dict({name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")})
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CacheDamaged(
                f"{self.file} is not the state of this head ({error}); move it elsewhere to train the head from its start"
            ) from error
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, field = name.split(".")
                states.setdefault(int(number), {})[field] = value
        self.optimizer.load_state_dict({"state": states, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.done = step


def _prefetch(make_batch: Callable[[int], Batch], first: int, stop: int) -> Iterator[Batch]:
    """Yield batches [first, stop) in order; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
        coming = pool.submit(make_batch, first)
        for step in range(first, stop):
            batch = coming.result()
            if step + 1 < stop:
                coming = pool.submit(make_batch, step + 1)
            yield batch
