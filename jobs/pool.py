"""Workers for shards: Ray actors on this machine or a cluster, or the caller's own process when none are asked for.

Ray Core actors and not Ray Data: a unit of work is a whole shard that its actor reads, computes and commits by itself, so nothing large
crosses the object store and a lost actor costs at most its present shard. A task whose actor died is given to a new actor, three times at
most; an error that we raised on purpose ends the run with its own text. Ray binds to loopback unless a cluster's address is given.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ..storage.errors import BadInput, EupeError
from .shard_work import ShardWorker, WorkOrder

MAX_TRIES = 3
Task = tuple[str, tuple[Any, ...]]  # method of ShardWorker, its arguments


class Workers(Protocol):
    """Something that does tasks: in order or not, each exactly once unless its worker dies."""

    retries: int

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result) as they finish; raises the first error on purpose that a task raised."""


@dataclass
class InProcess:
    """The tasks one after another in this process."""

    order: WorkOrder
    retries: int = 0

    @cached_property
    def _worker(self) -> ShardWorker:
        return ShardWorker(self.order)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Results in the order of the tasks."""
        for number, (method, arguments) in enumerate(tasks):
            yield number, getattr(self._worker, method)(*arguments)


class _Actor:
    """What runs in a Ray actor: a `ShardWorker` whose errors on purpose come back as values, with their text intact."""

    def __init__(self, order: WorkOrder) -> None:
        self._worker: ShardWorker | EupeError
        try:
            self._worker = ShardWorker(order)
        except EupeError as error:
            self._worker = error

    def do(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if isinstance(self._worker, EupeError):
            return self._worker
        try:
            return getattr(self._worker, method)(*arguments)
        except EupeError as error:
            return error


@dataclass
class RayActors:
    """`count` actors of a running Ray; use `ray_workers` to make one."""

    ray: Any
    order: WorkOrder
    count: int
    retries: int = 0
    _idle: list[Any] = field(default_factory=list)

    def _actor(self) -> Any:
        """An idle actor, or a new one: one CPU for each thread, a GPU each where the order asks for one."""
        if self._idle:
            return self._idle.pop()
        gpus = 1 if self.order.device == "cuda" else 0
        return self.ray.remote(_Actor).options(num_cpus=self.order.threads, num_gpus=gpus).remote(self.order)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Results as they finish."""
        waiting, tries = list(reversed(range(len(tasks)))), [0] * len(tasks)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and len(running) < self.count:
                number, actor = waiting.pop(), self._actor()
                running[actor.do.remote(*tasks[number])] = number, actor
            done, _ = self.ray.wait(list(running), num_returns=1)
            number, actor = running.pop(done[0])
            try:
                result = self.ray.get(done[0])
            except (self.ray.exceptions.RayActorError, self.ray.exceptions.RaySystemError, self.ray.exceptions.OutOfMemoryError) as error:
                self._give_up_or_retry(number, tries, tasks[number], error)
                waiting.append(number)
                continue
            if isinstance(result, EupeError):
                raise result
            self._idle.append(actor)
            yield number, result

    def dismiss(self) -> None:
        """End the idle actors, so that an outer session has its CPUs back."""
        while self._idle:
            self.ray.kill(self._idle.pop())

    def _give_up_or_retry(self, number: int, tries: list[int], task: Task, error: Exception) -> None:
        tries[number] += 1
        self.retries += 1
        if tries[number] >= MAX_TRIES:
            raise EupeError(
                f"{task[0]} {task[1][0]!r} failed {MAX_TRIES} times because its worker died ({str(error).splitlines()[0]}); "
                "what was committed stays. Too little memory is the usual cause: fewer --workers or a smaller --batch-size"
            ) from error


@contextlib.contextmanager
def workers(order: WorkOrder, count: int, address: str | None) -> Iterator[Workers]:
    """`count` workers for an order: in this process for 0, otherwise Ray actors, locally or on the cluster at `address`."""
    if count == 0:
        if address is not None:
            raise BadInput("--workers 0 runs in this process and cannot use --address")
        yield InProcess(order)
        return
    with ray_session(address, count * order.threads) as ray:
        crew = RayActors(ray, order, count)
        try:
            yield crew
        finally:
            crew.dismiss()


@contextlib.contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """A running Ray: the one that an outer session of this process holds, the cluster at `address`, or one on this machine alone.

    Several extractions inside one session start it once (some four seconds). Raises `BadInput` when no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    local = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": 128 << 20,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else local))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(f"no Ray cluster answers at {address or 'this machine'}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
