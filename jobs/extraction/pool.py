"""A pool of workers that extract shards: Ray actors on this machine or a cluster, or the caller's own process for 0 workers.

Ray Core actors and not Ray Data: a unit of work is a whole shard that its actor reads, computes and commits by itself, so nothing large
crosses the object store and a lost actor costs at most the shards that it was computing. Each worker has two tasks, so that it writes one
shard while it computes the next. A task whose actor died is retried on another, three times at most; an `EupeError` ends the run with its
own text. An actor gets tasks only once it is ready, so that one that a lost node left without resources holds up nothing.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent, ignore_event
from ..ray_session import ray_session
from .shard_worker import TASKS_AT_ONCE, ShardWorker
from .work_orders import WorkOrder

MAX_TRIES = 3
SAY_AFTER_S = 10.0  # without room for a single worker
GIVE_UP_AFTER_S = 300.0
Task = tuple[str, tuple[Any, ...]]  # method of ShardWorker, its arguments


class Workers(Protocol):
    """A pool that runs tasks: in order or not, each exactly once unless its worker dies."""

    retries: int
    most: int
    """The largest number of workers at any time."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, its result) as they finish; raises the first `EupeError` that a task raised."""


@dataclass
class InProcess:
    """Runs tasks on threads of this process, two at a time; a stop drops what is not committed at the next batch."""

    order: WorkOrder
    retries: int = 0
    most: int = 1

    @cached_property
    def _worker(self) -> ShardWorker:
        return ShardWorker(self.order)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield results in the order of the tasks."""
        worker, waiting = self._worker, deque[tuple[int, Future[Any]]]()
        with ThreadPoolExecutor(TASKS_AT_ONCE, thread_name_prefix="shard") as pool:
            try:
                for number, (method, arguments) in enumerate(tasks):
                    waiting.append((number, pool.submit(getattr(worker, method), *arguments)))
                    if len(waiting) == TASKS_AT_ONCE:
                        yield _first_result(waiting)
                while waiting:
                    yield _first_result(waiting)
            except BaseException:  # Ctrl-C, SIGTERM, a task's error, or a caller who has had enough
                worker.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _first_result(waiting: deque[tuple[int, Future[Any]]]) -> tuple[int, Any]:
    number, future = waiting.popleft()
    return number, future.result()


class _Actor:
    """A Ray actor around a `ShardWorker`; an `EupeError` is returned as a value, so that its text stays intact."""

    def __init__(self, order: WorkOrder, driver_node: str) -> None:
        self._order, self._driver_node = order, driver_node
        self._worker: ShardWorker | EupeError | None = None

    def placed(self) -> None:
        """Return as soon as Ray has placed this actor on a node."""

    def ready(self) -> EupeError | None:
        """Load the teachers."""
        try:
            self._worker = ShardWorker(self._order)
        except EupeError as error:
            self._worker = self._with_node(error)
        return self._worker if isinstance(self._worker, EupeError) else None

    def _with_node(self, error: EupeError) -> EupeError:
        import ray

        if ray.get_runtime_context().get_node_id() == self._driver_node:
            return error
        return type(error)(
            f"on node {socket.gethostname()}: {error}. Every node must see the store, the images and the weights under the same paths "
            "(a file system that all share, or an object store)"
        )

    def do(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if isinstance(self._worker, EupeError):
            return self._worker
        try:
            return getattr(self._worker, method)(*arguments)
        except EupeError as error:
            return error


@dataclass(eq=False)
class _Worker:
    """An actor, the reference that resolves once Ray has placed it on a node, and its number of running tasks."""

    actor: Any
    placed: Any
    busy: int = 0


@dataclass
class RayActors:
    """`count` actors of a running Ray, or as many as the cluster has resources for at the moment; use `workers` to make one."""

    ray: Any
    order: WorkOrder
    count: int | None
    on_event: OnEvent = ignore_event
    retries: int = 0
    most: int = 0
    _starting: dict[Any, _Worker] = field(default_factory=dict)  # by the reference that `ready` resolves
    _ready: list[_Worker] = field(default_factory=list)
    _failed_starts: int = 0
    _lacking_since: float | None = None
    _warned: bool = False
    _had_resources: bool = False  # when the starting actors were requested: from then on they hold the resources themselves

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield results as they finish."""
        waiting, tries = list(reversed(range(len(tasks)))), [0] * len(tasks)
        running: dict[Any, tuple[int, _Worker]] = {}
        while waiting or running:
            self._start_workers(len(waiting))
            while waiting and (worker := self._least_busy()) is not None:
                number = waiting.pop()
                worker.busy += 1
                running[worker.actor.do.remote(*tasks[number])] = number, worker
            answers = self.ray.wait([*running, *self._starting], num_returns=1, timeout=SAY_AFTER_S / 2)[0]
            if not answers:
                self._await_resources()
                continue
            done = answers[0]
            if done in self._starting:
                self._on_ready(done)
                continue
            number, worker = running.pop(done)
            worker.busy -= 1
            try:
                result = self.ray.get(done)
            except self._worker_losses() as error:
                self._stop_worker(worker)
                self._give_up_or_retry(number, tries, tasks[number], error)
                waiting.append(number)
                continue
            if isinstance(result, EupeError):
                raise result
            yield number, result

    def _worker_losses(self) -> tuple[type[Exception], ...]:
        """Return the errors that mean a worker died or had no memory, rather than that its work was wrong."""
        errors = self.ray.exceptions
        return errors.RayActorError, errors.RaySystemError, errors.OutOfMemoryError, MemoryError

    def _start_workers(self, tasks_waiting: int) -> None:
        """Start actors up to the count: one CPU for each thread, a share of GPUs where the order asks for them."""
        limit = self._capacity() if self.count is None else self.count
        free = sum(TASKS_AT_ONCE - worker.busy for worker in self._ready) + TASKS_AT_ONCE * len(self._starting)
        if not self._ready and not self._starting:
            self._had_resources = self._has_resources()
        while len(self._ready) + len(self._starting) < limit and free < tasks_waiting:
            gpus = self.order.gpus if self.order.device == "cuda" else 0
            options = {"num_cpus": self.order.threads, "num_gpus": gpus, "max_concurrency": TASKS_AT_ONCE}
            actor = self.ray.remote(_Actor).options(**options).remote(self.order, self.ray.get_runtime_context().get_node_id())
            worker = _Worker(actor, actor.placed.remote())
            self._starting[actor.ready.remote()] = worker
            free += 1  # one task each first, a second one when all have one

    def _await_resources(self) -> None:
        """Warn after seconds that Ray has placed no worker on the cluster, and raise `BadInput` when it has not for minutes."""
        pending = [worker.placed for worker in self._starting.values()]
        if (
            self._ready
            or not pending
            or self._had_resources
            or self._has_resources()
            or self.ray.wait(pending, num_returns=1, timeout=0)[0]
        ):
            self._lacking_since = None
            return
        now = time.monotonic()
        since = self._lacking_since = self._lacking_since or now
        if now - since >= GIVE_UP_AFTER_S:
            raise BadInput(f"{self._lacking_text()}; none came free in {GIVE_UP_AFTER_S:.0f} s. What was committed stays")
        if now - since >= SAY_AFTER_S and not self._warned:
            self._warned = True
            self.on_event({"event": "warning", "text": f"{self._lacking_text()}; waiting for {GIVE_UP_AFTER_S:.0f} s at most"})

    def _has_resources(self) -> bool:
        """Return whether the cluster has free resources for one worker, summed over all its nodes."""
        free = self.ray.available_resources()
        gpus = self.order.gpus if self.order.device == "cuda" else 0
        return bool(free.get("CPU", 0) >= self.order.threads and free.get("GPU", 0) >= gpus)

    def _lacking_text(self) -> str:
        needed = f"{self.order.threads} CPU" + (f" and {self.order.gpus:g} GPU" if self.order.device == "cuda" else "")
        return lacking_resources(self.ray, "a worker", needed)

    def _capacity(self) -> int:
        """Return how many actors the cluster can hold now; it may grow and shrink."""
        resources = self.ray.cluster_resources()
        capacities = [resources.get("CPU", 0) / self.order.threads]
        if self.order.device == "cuda":
            capacities.append(resources.get("GPU", 0) / self.order.gpus)
        return max(1, int(min(capacities)))

    def _on_ready(self, answer: Any) -> None:
        """Take a started actor into use, unless it died at its start; raises the `EupeError` that its start raised."""
        worker = self._starting.pop(answer)
        try:
            start_error = self.ray.get(answer)
        except self._worker_losses() as error:
            self._failed_starts += 1
            self.retries += 1
            if self._failed_starts >= MAX_TRIES:
                raise EupeError(
                    f"workers died {MAX_TRIES} times while they loaded the teachers ({_first_line(error)}); {_ADVICE}"
                ) from error
            return
        if start_error is not None:
            raise start_error
        self._ready.append(worker)
        self.most = max(self.most, len(self._ready))

    def _least_busy(self) -> _Worker | None:
        free = [worker for worker in self._ready if worker.busy < TASKS_AT_ONCE]
        return min(free, key=lambda worker: worker.busy, default=None)

    def _stop_worker(self, worker: _Worker) -> None:
        if worker in self._ready:
            self._ready.remove(worker)
            self.ray.kill(worker.actor)

    def stop(self) -> None:
        """Kill all actors at once, whatever they do: a shard without its record does not exist, and the next run computes it."""
        for worker in (*self._ready, *self._starting.values()):
            self.ray.kill(worker.actor)
        self._ready.clear()
        self._starting.clear()

    def _give_up_or_retry(self, number: int, tries: list[int], task: Task, error: Exception) -> None:
        tries[number] += 1
        self.retries += 1
        if tries[number] >= MAX_TRIES:
            raise EupeError(
                f"{task[0]} {task[1][0]!r} failed {MAX_TRIES} times because its worker died ({_first_line(error)}); {_ADVICE}"
            ) from error


_ADVICE = "what was committed stays. Too little memory is the usual cause: fewer --workers or a smaller --batch-size"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def lacking_resources(ray: Any, who: str, needed: str) -> str:
    """Return in words what a worker or rank asks of the cluster, and which resources it has and are free."""
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU") if kind in there or kind == "CPU"]
    return f"the Ray cluster has no room for {who}: each asks for {needed} on one node, and {', '.join(parts)} on all nodes together"


@contextlib.contextmanager
def workers(order: WorkOrder, count: int | None, address: str | None, on_event: OnEvent = ignore_event) -> Iterator[Workers]:
    """Yield `count` workers for an order: in this process for 0, otherwise Ray actors, locally or on the cluster at `address`.

    `None` is as many as the cluster has room for.
    """
    if count == 0:
        if address is not None:
            raise BadInput("--workers 0 runs in this process and cannot use --address")
        yield InProcess(order)
        return
    with ray_session(address, None if count is None else count * order.threads) as ray:
        actors = RayActors(ray, order, count, on_event)
        try:
            yield actors
        finally:
            actors.stop()
