"""The functions of the `runs` commands: list the training runs below a folder, show one, compare the values in which several differ.

Reading only, from recipe.json, identities.json, metrics.jsonl and summary.json, so that running ones can be looked at. Runs made on one
store are told apart by their recipes; a run that was begun on other targets is another comparison, and says so.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.urls import is_url
from ...student.training.checkpoint import list_checkpoints, step_in_name
from ..recipes.typed_tables import leaves
from .evaluation_table import headline, read_evaluations, title_of
from .run_folder import RunRecord, read_run

ABSENT = "-"


def list_runs(*, folder: Path | str, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return a row for each run at or below a folder or a URL, by its path from there; raises BadInput for what is neither."""
    with local_records(folder) as here:
        if not here.is_dir():
            raise BadInput(f"{folder} is not a folder")
        folders = sorted(path.parent for path in here.rglob("recipe.json") if (path.parent / "identities.json").is_file())
        return {"runs": {str(run.relative_to(here)): row(run) for run in folders}}


def show_run(*, out: Path | str, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return one run's state, last losses, targets and recipe; raises BadInput when it is not one."""
    with local_records(out) as here:
        record = read_run(here)
        last: dict[str, Any] = next((line for line in reversed(record.metrics) if "loss" in line), {})
        recipe = {key: {"value": value, "origin": record.origins.get(key, "not recorded")} for key, value in leaves(record.recipe)}
        return {"run": str(out), **row(here), "losses": last.get("losses", {}), "targets": targets(here), "recipe": recipe}


def compare_runs(*, outs: Sequence[Path | str], on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return the runs' rows, their evaluations and each recipe value that is not the same in all; raises BadInput for one name twice."""
    names = [str(out) for out in outs]
    if len(set(names)) < len(names):
        raise BadInput(f"a run is named twice: {', '.join(names)}")
    with contextlib.ExitStack() as stack:
        here = {name: stack.enter_context(local_records(out)) for name, out in zip(names, outs, strict=True)}
        records = {name: read_run(run) for name, run in here.items()}
        flat = {name: dict(leaves(record.recipe)) | {"targets": targets(here[name])} for name, record in records.items()}
        evaluated = {name: evaluation_figures(run) for name, run in here.items()}
        keys = dict.fromkeys(key for table in flat.values() for key in table)
        differing = {key: {name: table.get(key, ABSENT) for name, table in flat.items()} for key in keys}
        return {
            "runs": {name: row(run) for name, run in here.items()},
            **({"evaluations": evaluated} if any(evaluated.values()) else {}),
            "differing": {key: values for key, values in differing.items() if len({json.dumps(value) for value in values.values()}) > 1},
        }


def evaluation_figures(run: Path) -> dict[str, list[str]]:
    """Return the figures of a run's evaluations by what they are called, each with the data that it is from."""
    figures: dict[str, list[str]] = {}
    for record in read_evaluations(run):
        figure = headline(record)
        figures.setdefault(title_of(record["evaluation"]), []).append(f"{figure.value} ({figure.data})" if figure.data else figure.value)
    return figures


@contextlib.contextmanager
def local_records(run: Path | str) -> Iterator[Path]:
    """Give a folder as it is, and of a URL the records of the runs at or below it; raises BadInput when there are none."""
    if not is_url(run):
        yield Path(run)
        return
    from ...jobs.runs.run_records import records_below

    with records_below(str(run)) as folder:
        yield folder


def row(out: Path) -> dict[str, Any]:
    """Return what a run is and how far, as one line; `agreement` on held-out images and its `gap` where it measured them."""
    record = read_run(out)
    last: dict[str, Any] = next((line for line in reversed(record.metrics) if "loss" in line), {})
    return {
        "stage": record.recipe.get("stage"),
        "student": record.recipe.get("student", {}).get("architecture"),
        "state": state(out, record),
        "steps": f"{last.get('step', 0)}/{record.recipe.get('run', {}).get('steps')}",
        "loss": last.get("loss"),
        "images_per_s": record.mean("images_per_s"),
        "wait_share": record.mean("wait_share"),
        **record.last_agreement(),
    }


def state(out: Path, record: RunRecord) -> str:
    """Return finished, running, begun, or the step from which the same command resumes."""
    if (out / "summary.json").is_file():
        return "finished"
    checkpoints = list_checkpoints(out / "checkpoints")
    if checkpoints:
        return f"resumes at {step_in_name(checkpoints[-1].name)}"
    return "running" if record.metrics else "begun"


def targets(out: Path) -> dict[str, str]:
    """Return what each teacher's targets are: the feature set's key, or that they are live."""
    path = out / "identities.json"
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8")).get("targets", {})
    return {name: target.get("features", target.get("source", ABSENT)) for name, target in recorded.items()}
