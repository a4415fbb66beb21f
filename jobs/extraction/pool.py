"""Workers for shards: Ray actors on this machine or a cluster, or the caller's own process when none are asked for.

Ray Core actors and not Ray Data: a unit of work is a whole shard that its actor reads, computes and commits by itself, so nothing large
crosses the object store and a lost actor costs at most the shards that it had under way. Each worker holds two tasks, so that it writes one
while it computes the next. A task whose actor died is given to another, three times at most; an error that we raised on purpose ends the
run with its own text. An actor gets tasks only once it runs, so that one for which a lost node left no room holds up nothing.
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
    """Something that does tasks: in order or not, each exactly once unless its worker dies."""

    retries: int
    most: int
    """How many there were at most."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result) as they finish; raises the first error on purpose that a task raised."""


@dataclass
class InProcess:
    """The tasks on threads of this process, two at a time; a stop drops what is not committed at the next batch."""

    order: WorkOrder
    retries: int = 0
    most: int = 1

    @cached_property
    def _worker(self) -> ShardWorker:
        return ShardWorker(self.order)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Results in the order of the tasks."""
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
    """What runs in a Ray actor: a `ShardWorker` whose errors on purpose come back as values, with their text intact."""

    def __init__(self, order: WorkOrder, driver_node: str) -> None:
        self._order, self._driver_node = order, driver_node
        self._worker: ShardWorker | EupeError | None = None

    def placed(self) -> None:
        """Answers as soon as the cluster had room for this actor."""

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
class _Hired:
    """An actor, what it answers once it has a place on a node, and how many tasks it has."""

    actor: Any
    placed: Any
    busy: int = 0


@dataclass
class RayActors:
    """`count` actors of a running Ray, or as many as the cluster has room for at the moment; use `workers` to make one."""

    ray: Any
    order: WorkOrder
    count: int | None
    on_event: OnEvent = ignore_event
    retries: int = 0
    most: int = 0
    _starting: dict[Any, _Hired] = field(default_factory=dict)  # by what `ready` will answer
    _crew: list[_Hired] = field(default_factory=list)
    _failed_starts: int = 0
    _without_room_since: float | None = None
    _said_room: bool = False
    _had_room: bool = False  # when the actors that are starting were asked for: those then hold it themselves

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Results as they finish."""
        waiting, tries = list(reversed(range(len(tasks)))), [0] * len(tasks)
        running: dict[Any, tuple[int, _Hired]] = {}
        while waiting or running:
            self._hire(len(waiting))
            while waiting and (hired := self._least_busy()) is not None:
                number = waiting.pop()
                hired.busy += 1
                running[hired.actor.do.remote(*tasks[number])] = number, hired
            answers = self.ray.wait([*running, *self._starting], num_returns=1, timeout=SAY_AFTER_S / 2)[0]
            if not answers:
                self._await_room()
                continue
            done = answers[0]
            if done in self._starting:
                self._welcome(done)
                continue
            number, hired = running.pop(done)
            hired.busy -= 1
            try:
                result = self.ray.get(done)
            except self._losses() as error:
                self._dismiss_one(hired)
                self._give_up_or_retry(number, tries, tasks[number], error)
                waiting.append(number)
                continue
            if isinstance(result, EupeError):
                raise result
            yield number, result

    def _losses(self) -> tuple[type[Exception], ...]:
        """What says that a worker died or had no memory, rather than that its work was wrong."""
        errors = self.ray.exceptions
        return errors.RayActorError, errors.RaySystemError, errors.OutOfMemoryError, MemoryError

    def _hire(self, wanted: int) -> None:
        """Ask for actors up to the count: one CPU for each thread, a share of GPUs where the order asks for them."""
        limit = self._room() if self.count is None else self.count
        free = sum(TASKS_AT_ONCE - hired.busy for hired in self._crew) + TASKS_AT_ONCE * len(self._starting)
        if not self._crew and not self._starting:
            self._had_room = self._has_room()
        while len(self._crew) + len(self._starting) < limit and free < wanted:
            gpus = self.order.gpus if self.order.device == "cuda" else 0
            options = {"num_cpus": self.order.threads, "num_gpus": gpus, "max_concurrency": TASKS_AT_ONCE}
            actor = self.ray.remote(_Actor).options(**options).remote(self.order, self.ray.get_runtime_context().get_node_id())
            hired = _Hired(actor, actor.placed.remote())
            self._starting[actor.ready.remote()] = hired
            free += 1  # one task each first, a second one when all have one

    def _await_room(self) -> None:
        """Say after seconds that no worker has found a place on the cluster, and raise `BadInput` when none has for minutes."""
        pending = [hired.placed for hired in self._starting.values()]
        if self._crew or not pending or self._had_room or self._has_room() or self.ray.wait(pending, num_returns=1, timeout=0)[0]:
            self._without_room_since = None
            return
        now = time.monotonic()
        since = self._without_room_since = self._without_room_since or now
        if now - since >= GIVE_UP_AFTER_S:
            raise BadInput(f"{self._lacking()}; none came free in {GIVE_UP_AFTER_S:.0f} s. What was committed stays")
        if now - since >= SAY_AFTER_S and not self._said_room:
            self._said_room = True
            self.on_event({"event": "warning", "text": f"{self._lacking()}; waiting for {GIVE_UP_AFTER_S:.0f} s at most"})

    def _has_room(self) -> bool:
        """Whether the cluster has room for one worker, on all its nodes together."""
        free = self.ray.available_resources()
        gpus = self.order.gpus if self.order.device == "cuda" else 0
        return bool(free.get("CPU", 0) >= self.order.threads and free.get("GPU", 0) >= gpus)

    def _lacking(self) -> str:
        wanted = f"{self.order.threads} CPU" + (f" and {self.order.gpus:g} GPU" if self.order.device == "cuda" else "")
        return room_text(self.ray, "a worker", wanted)

    def _room(self) -> int:
        """How many actors the cluster can hold now; it may grow and shrink."""
        has = self.ray.cluster_resources()
        rooms = [has.get("CPU", 0) / self.order.threads]
        if self.order.device == "cuda":
            rooms.append(has.get("GPU", 0) / self.order.gpus)
        return max(1, int(min(rooms)))

    def _welcome(self, answer: Any) -> None:
        """A new actor joins the crew, unless it could not start; raises the error on purpose that its start met."""
        hired = self._starting.pop(answer)
        try:
            refused = self.ray.get(answer)
        except self._losses() as error:
            self._failed_starts += 1
            self.retries += 1
            if self._failed_starts >= MAX_TRIES:
                raise EupeError(
                    f"workers died {MAX_TRIES} times while they loaded the teachers ({_first_line(error)}); {_ADVICE}"
                ) from error
            return
        if refused is not None:
            raise refused
        self._crew.append(hired)
        self.most = max(self.most, len(self._crew))

    def _least_busy(self) -> _Hired | None:
        free = [hired for hired in self._crew if hired.busy < TASKS_AT_ONCE]
        return min(free, key=lambda hired: hired.busy, default=None)

    def _dismiss_one(self, hired: _Hired) -> None:
        if hired in self._crew:
            self._crew.remove(hired)
            self.ray.kill(hired.actor)

    def dismiss(self) -> None:
        """End all actors at once, whatever they do: a shard without its record does not exist, and the next run does it."""
        for hired in (*self._crew, *self._starting.values()):
            self.ray.kill(hired.actor)
        self._crew.clear()
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


def room_text(ray: Any, who: str, wanted: str) -> str:
    """Return what a worker or rank asks of the cluster, and what is there and free."""
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU") if kind in there or kind == "CPU"]
    return f"the Ray cluster has no room for {who}: each asks for {wanted} on one node, and {', '.join(parts)} on all nodes together"


@contextlib.contextmanager
def workers(order: WorkOrder, count: int | None, address: str | None, on_event: OnEvent = ignore_event) -> Iterator[Workers]:
    """`count` workers for an order: in this process for 0, otherwise Ray actors, locally or on the cluster at `address`.

    `None` is as many as the cluster has room for.
    """
    if count == 0:
        if address is not None:
            raise BadInput("--workers 0 runs in this process and cannot use --address")
        yield InProcess(order)
        return
    with ray_session(address, None if count is None else count * order.threads) as ray:
        crew = RayActors(ray, order, count, on_event)
        try:
            yield crew
        finally:
            crew.dismiss()
