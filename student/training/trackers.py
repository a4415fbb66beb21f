"""Trackers that `train --track` feeds beside TensorBoard, each a row of `TRACKERS` with its own client library.

A client is imported when its row begins a run, in a process that belongs to it alone (`tracked_run`): what it prints, how long it waits for
its server and how it breaks never reaches the training. Where it sends to, as whom, and whether it is offline is its own business, said by
its own environment variables and login files; none of them is read here, and nothing but numbers and the recipe is given to it. Without
a server MLflow writes to `OUT/mlruns`, and wandb's files lie below `OUT/wandb`.
"""

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ...storage.core.choices import Tracker
from ...storage.core.errors import BadInput

PROJECT = "eupe-pipeline"
_PARAMETERS_A_CALL, _LONGEST_PARAMETER, _LONGEST_TAG = 100, 6000, 5000  # MLflow's limits
End = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run at its beginning."""

    out: Path
    name: str
    id: str
    """Under which the tracker knows the run, when it was `begun` before; else one that it may take."""
    begun: bool
    config: Mapping[str, Any]
    """The resolved `recipe`, and the `origins` of its values by dotted key."""


class Connection(Protocol):
    """A run that is open in a tracker."""

    id: str
    """Under which the tracker knows the run."""
    address: str
    """Where to look at it; "" where it is on this machine alone."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step; an older client may do it later, on a thread of its own."""

    def end(self, how: End) -> None:
        """Send what is left and close the run."""


class Wandb:
    """Weights & Biases: WANDB_API_KEY or `wandb login`, WANDB_PROJECT, WANDB_MODE=offline."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        settings = wandb.Settings(console="off", disable_code=True, disable_git=True, silent=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=run.name, id=run.id, resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.out), config=dict(run.config), settings=settings,
        )  # fmt: skip
        self.id, self.address = run.id, "" if self._run.offline else str(self._run.url)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step; wandb itself leaves out one that it has."""
        self._run.log(dict(values), step=step)

    def end(self, how: End) -> None:
        """Send what is left; anything but a finished run is shown as failed."""
        self._run.finish(exit_code=0 if how == "finished" else 1)


class MLflow:
    """MLflow: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME; the run's id is the server's."""

    def __init__(self, run: TrackedRun) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ |= {"MLFLOW_TRACKING_URI": (run.out / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self.id, self.address = run.id if run.begun else self._made(run), ""
        self._client.update_run(self.id, status="RUNNING")

    def _made(self, run: TrackedRun) -> str:
        """Create the run with the recipe as its parameters and the values' origins as tags; returns its id."""
        from mlflow.entities import Param, RunTag

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        run_id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        values = [Param(allowed(key), value[:_LONGEST_PARAMETER]) for key, value in flat(run.config["recipe"])]
        origins = [RunTag(allowed(f"origin.{key}"), str(origin)[:_LONGEST_TAG]) for key, origin in run.config["origins"].items()]
        for first in range(0, max(len(values), len(origins)), _PARAMETERS_A_CALL):
            part = slice(first, first + _PARAMETERS_A_CALL)
            self._client.log_batch(run_id, params=values[part], tags=origins[part])
        return run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step in one request."""
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(allowed(tag), value, now_ms, step) for tag, value in values.items()])

    def end(self, how: End) -> None:
        """Close the run."""
        self._client.set_terminated(self.id, {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[how])


class Trackio:
    """Trackio: on this machine (TRACKIO_DIR), or a Space (TRACKIO_SPACE_ID and a Hugging Face login)."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self.id, self.address = run.id, ""
        self._run = trackio.init(  # it finds a run by its name
            project=PROJECT, name=f"{run.name}-{run.id}", config=dict(run.config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step."""
        self._run.log(dict(values), step=step)

    def end(self, how: End) -> None:
        """Write what is left."""
        self._run.finish()


@dataclass(frozen=True)
class TrackerRow:
    """One tracker."""

    module: str
    """What is imported."""
    package: str
    """What `pip install` takes for it."""
    begin: Callable[[TrackedRun], Connection]
    """Opens the run, new or again."""


TRACKERS: dict[Tracker, TrackerRow] = {
    "wandb": TrackerRow("wandb", "wandb", Wandb),
    "mlflow": TrackerRow("mlflow", "mlflow-skinny", MLflow),
    "trackio": TrackerRow("trackio", "trackio", Trackio),
}


def require_clients(names: Iterable[Tracker]) -> None:
    """Raise `BadInput` that says what to install for a tracker whose client is not installed here."""
    for name in names:
        row = TRACKERS[name]
        spec = importlib.util.find_spec(row.module)
        if spec is None or spec.origin is None:  # without origin: a mere folder of that name, such as wandb's own beside the user's files
            raise BadInput(
                f"--track {name} needs the Python package {row.module}, which is not installed here: pip install {row.package}, or leave "
                "--track out; metrics.jsonl and TensorBoard's files are written in any case"
            )


def flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted key, value as JSON) of every value."""
    pairs: list[tuple[str, str]] = []
    for key, value in table.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", json.dumps(value))]
    return pairs


def allowed(name: str) -> str:
    """Return a name as MLflow takes it: each other character, such as the plus of a teacher's name, is its code (`_2b`)."""
    return re.sub(r"[^\w\-./ ]", lambda match: f"_{ord(match[0]):x}", name, flags=re.ASCII)
