"""Training on several processes or machines: Ray Train's TorchTrainer starts the ranks, and the trainer of one process runs in each.

Every rank opens the store itself and builds its own span of each batch, so nothing large passes through Ray. The run's folder must be
visible to all ranks (one machine, or a shared file system); the first rank alone writes to it. When a rank's process dies, Ray starts the
whole group again, three times at most, and it goes on from the newest checkpoint. An `EupeError` is raised in the caller with its own
text and ends the run without retries. Ranks and caller exchange messages through one small actor, the board.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.stop_signals import call_on_stop
from ...storage.core.urls import is_url
from ...student.model.ranks import Ranks, rank_span
from ...student.model.recipe import TrainRecipe
from ..extraction.pool import GIVE_UP_AFTER_S, SAY_AFTER_S, lacking_resources
from ..ray_session import ray_session
from ..runs.upload import local_copy
from .data import open_parts
from .options import TrainOptions
from .train import train_in_process
from .versions import recorded_versions

MAX_RESTARTS = 3
_POLL_S = 0.2
_STOP_POLL_S = 1.0


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


def train_on_workers(options: TrainOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Train with `options.workers` ranks; returns and raises what `train_in_process` does, `EupeError` after too many deaths."""
    recipe, workers = options.recipe, options.workers
    rank_span(recipe.run.batch_size, 0, workers)  # raises BadInput when a rank would have nothing
    store, shares = options.open_store(), recipe.data.shares
    versions = recorded_versions(options, store, options.out)
    open_parts(store, options.features, options.data, shares, subsets=options.subsets, complete=options.complete, versions=versions)
    with ray_session(options.address, workers) as ray:
        _await_resources(ray, workers, _wants_cuda(recipe), on_event)
        board = ray.remote(_Board).options(num_cpus=0).remote()
        try:
            return _run(ray, board, options, on_event)
        finally:
            ray.kill(board)


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


def _run(ray: Any, board: Any, options: TrainOptions, on_event: OnEvent) -> dict[str, Any]:
    out = local_copy(str(options.out)) if is_url(options.out) else Path(options.out)
    scratch = out.parent / f".{out.name}.ray"
    group = _Group(options, board, scratch)
    results: list[Any] = []
    stop = threading.Event()
    try:
        with call_on_stop(stop.set):
            group.start()
            while True:
                running = group.is_alive()
                for kind, value in ray.get(board.take.remote(stop.is_set())):
                    if kind == "event":
                        on_event(value)
                    else:
                        results.append(value)
                if not running:
                    break
                time.sleep(_POLL_S)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _outcome(results, group.error, options.workers)


def _outcome(results: Sequence[Any], error: BaseException | None, workers: int) -> dict[str, Any]:
    """Return the first rank's summary; raises an `EupeError` as it is, and other deaths in our words."""
    for result in results:
        if isinstance(result, EupeError):
            raise result
    if error is not None or not results:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise EupeError(
            f"training on {workers} workers was given up after {MAX_RESTARTS} restarts ({type(error).__name__}: {reason}); the newest "
            "checkpoint is kept, run the same command again to go on. Too little memory is the usual cause: smaller run.batch_size, or "
            "run.accumulate"
        ) from error
    return dict(results[-1])


class _Group(threading.Thread):
    """A thread for Ray Train's `fit`, which blocks: the main thread must stay free to handle signals."""

    def __init__(self, options: TrainOptions, board: Any, scratch: Path) -> None:
        super().__init__(daemon=True, name="ray-train")
        self.options, self.board, self.scratch = options, board, scratch
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

        on_cuda = _wants_cuda(self.options.recipe)
        TorchTrainer(
            _rank,
            train_loop_config={"options": self.options, "board": self.board, "host": socket.gethostname()},
            torch_config=TorchConfig(backend="nccl" if on_cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=self.options.workers, use_gpu=on_cuda, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="ranks", storage_path=str(self.scratch), failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
        ).fit()


def _wants_cuda(recipe: TrainRecipe) -> bool:
    from ...teachers.runtime.devices import choose_device

    return choose_device(recipe.device).value == "cuda"


def _rank(config: dict[str, Any]) -> None:
    """Run one rank in Ray's worker process, with torch's process group open."""
    import ray
    import ray.train
    import torch

    options, board = config["options"], config["board"]
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
        summary = _train(options, ranks, lambda event: send("event", event), lambda: bool(ray.get(board.stop_asked.remote())))
    except EupeError as error:
        host = socket.gethostname()
        send("error", error if host == config["host"] else type(error)(f"on node {host}: {error}"))
        ray.get(sent)
        raise
    if ranks.first:
        send("result", summary)
    ray.get(sent)


def _train(options: TrainOptions, ranks: Ranks, on_event: OnEvent, ask_stop: Callable[[], bool]) -> dict[str, Any]:
    last_asked = time.monotonic()

    def stop_asked() -> bool:
        nonlocal last_asked
        if not ranks.first or time.monotonic() - last_asked < _STOP_POLL_S:
            return False
        last_asked = time.monotonic()
        return ask_stop()

    return train_in_process(options, on_event, ranks=ranks, stop_asked=stop_asked)
