"""A group of ranks that one Ray Train run starts: the same function in each, messages to the caller, restarts after deaths.

Every rank opens what it needs itself, so nothing large passes through Ray. The files that ranks write must be visible to all of them (one
machine, or a shared file system); the first rank alone writes. When a rank's process dies, Ray starts the whole group again, three times at
most, and the function goes on from what it kept. An `EupeError` is raised in the caller with its own text and ends the run without
retries. Ranks and caller exchange messages through one small actor, the board.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent
from ...storage.core.stop_signals import call_on_stop
from ...student.model.ranks import Ranks
from ..extraction.pool import GIVE_UP_AFTER_S, SAY_AFTER_S, lacking_resources
from ..ray_session import ray_session

MAX_RESTARTS = 3
_POLL_S = 0.2
_STOP_POLL_S = 1.0


Body = Callable[[Any, Ranks, OnEvent, Callable[[], bool]], dict[str, Any]]
"""(request, ranks, on_event, stop_asked) → summary; the first rank's is returned. A function of a module, because Ray pickles it."""


@dataclass(frozen=True)
class Group:
    """What is run, by how many ranks and where."""

    body: Body
    request: Any
    workers: int
    on_cuda: bool
    scratch: Path
    """Folder of Ray Train's own notes, removed afterwards."""
    advice: str
    """What the user can do after too many deaths."""
    address: str | None = None


def run_group(group: Group, on_event: OnEvent) -> dict[str, Any]:
    """Return the first rank's summary; raises what a rank raised on purpose, `EupeError` after too many deaths."""
    with ray_session(group.address, group.workers) as ray:
        _await_resources(ray, group.workers, group.on_cuda, on_event)
        board = ray.remote(_Board).options(num_cpus=0).remote()
        try:
            return _run(ray, board, group, on_event)
        finally:
            ray.kill(board)


class _Board:
    """The actor between ranks and caller: messages one way, the wish to stop the other."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stop = self._over = False

    def tell(self, kind: str, value: Any) -> None:
        self._over |= kind == "error"
        self._messages.append((kind, value))

    def take(self, stop: bool) -> list[tuple[str, Any]]:
        """Return all new messages; passes the caller's wish to stop on."""
        self._stop |= stop
        taken, self._messages = self._messages, []
        return taken

    def stop_asked(self) -> bool:
        return self._stop

    def over(self) -> bool:
        """Return whether a rank has ended the run on purpose: a group that Ray starts again must not try once more."""
        return self._over


def _await_resources(ray: Any, workers: int, on_cuda: bool, on_event: OnEvent) -> None:
    """Wait until the cluster has resources for all ranks: warns after seconds, raises `BadInput` after minutes. Ray Train waits for
    ever."""
    resources = {"CPU": workers, "GPU": workers if on_cuda else 0}
    began, warned = time.monotonic(), False
    while any(ray.available_resources().get(kind, 0) < count for kind, count in resources.items()):
        lacking = lacking_resources(ray, f"one of {workers} ranks", "1 CPU and 1 GPU" if on_cuda else "1 CPU")
        waited = time.monotonic() - began
        if waited >= GIVE_UP_AFTER_S:
            raise BadInput(f"{lacking}; it did not come free in {GIVE_UP_AFTER_S:.0f} s. Give fewer --workers, or stop what holds it")
        if waited >= SAY_AFTER_S and not warned:
            warned = True
            on_event({"event": "warning", "text": f"{lacking}; waiting for {GIVE_UP_AFTER_S:.0f} s at most"})
        time.sleep(_POLL_S)


def _run(ray: Any, board: Any, group: Group, on_event: OnEvent) -> dict[str, Any]:
    thread = _Thread(group, board)
    results: list[Any] = []
    stop = threading.Event()
    try:
        with call_on_stop(stop.set):
            thread.start()
            while True:
                running = thread.is_alive()
                for kind, value in ray.get(board.take.remote(stop.is_set())):
                    if kind == "event":
                        on_event(value)
                    else:
                        results.append(value)
                if not running:
                    break
                time.sleep(_POLL_S)
    finally:
        shutil.rmtree(group.scratch, ignore_errors=True)
    return _outcome(results, thread.error, group)


def _outcome(results: Sequence[Any], error: BaseException | None, group: Group) -> dict[str, Any]:
    """Return the first rank's summary; raises an `EupeError` as it is, and other deaths in our words."""
    for result in results:
        if isinstance(result, EupeError):
            raise result
    if error is not None or not results:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise EupeError(
            f"training on {group.workers} workers was given up after {MAX_RESTARTS} restarts ({type(error).__name__}: {reason}); the "
            f"newest checkpoint is kept, run the same command again to go on. Too little memory is the usual cause: {group.advice}"
        ) from error
    return dict(results[-1])


class _Thread(threading.Thread):
    """A thread for Ray Train's `fit`, which blocks: the main thread must stay free to handle signals."""

    def __init__(self, group: Group, board: Any) -> None:
        super().__init__(daemon=True, name="ray-train")
        self.group, self.board = group, board
        self.error: BaseException | None = None

    def run(self) -> None:
        """Start the ranks and wait for them."""
        try:
            self._fit()
        except Exception as error:  # noqa: BLE001 - Ray's own family; the main thread decides
            self.error = error

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        group = self.group
        TorchTrainer(
            _rank,
            train_loop_config={"body": group.body, "request": group.request, "board": self.board, "host": socket.gethostname()},
            torch_config=TorchConfig(backend="nccl" if group.on_cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=group.on_cuda, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="ranks", storage_path=str(group.scratch), failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
        ).fit()


def _rank(config: dict[str, Any]) -> None:
    """Run one rank in Ray's worker process, with torch's process group open."""
    import ray
    import ray.train
    import torch

    board = config["board"]
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    if ray.get(board.over.remote()):
        return
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))  # Ray leaves one: it reserves one CPU a rank
    sent: list[Any] = []

    def send(kind: str, value: Any) -> None:
        sent.append(board.tell.remote(kind, value))

    send("event", {"event": "rank", "rank": ranks.number, "ranks": ranks.count, "pid": os.getpid(), "host": socket.gethostname()})
    try:
        ask_stop = _asking(ranks, lambda: bool(ray.get(board.stop_asked.remote())))
        summary = config["body"](config["request"], ranks, lambda event: send("event", event), ask_stop)
    except EupeError as error:
        host = socket.gethostname()
        send("error", error if host == config["host"] else type(error)(f"on node {host}: {error}"))
        ray.get(sent)
        raise
    if ranks.first:
        send("result", summary)
    ray.get(sent)


def _asking(ranks: Ranks, ask_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that says whether the caller wants a stop; the first rank alone asks, once a second."""
    last_asked = time.monotonic()

    def stop_asked() -> bool:
        nonlocal last_asked
        if not ranks.first or time.monotonic() - last_asked < _STOP_POLL_S:
            return False
        last_asked = time.monotonic()
        return ask_stop()

    return stop_asked
