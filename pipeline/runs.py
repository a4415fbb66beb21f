"""Many training runs side by side: what there is below a folder, how far each is, and in which values they differ.

Reading only, from recipe.json, identities.json, metrics.jsonl and summary.json, so that running ones can be looked at. Runs made on one
store are told apart by their recipes; a run that was begun on other targets is another comparison, and says so.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.errors import BadInput
from .progress import OnEvent
from .run_folder import RunRecord, read_run
from .typed_tables import leaves

ABSENT = "-"


def list_runs(*, folder: Path, on_event: OnEvent) -> dict[str, Any]:
    """Return a row for each run at or below a folder, by its path from there."""
    found = sorted(path.parent for path in folder.rglob("recipe.json") if (path.parent / "identities.json").is_file())
    return {"runs": {str(run.relative_to(folder)): row(run) for run in found}}


def show_run(*, out: Path, on_event: OnEvent) -> dict[str, Any]:
    """Return one run's state, last losses, targets and recipe; raises BadInput when it is not one."""
    record = read_run(out)
    last: dict[str, Any] = next((line for line in reversed(record.metrics) if "loss" in line), {})
    recipe = {key: {"value": value, "origin": record.origins.get(key, "not recorded")} for key, value in leaves(record.recipe)}
    return {"run": str(out), **row(out), "losses": last.get("losses", {}), "targets": targets(out), "recipe": recipe}


def compare_runs(*, outs: Sequence[Path], on_event: OnEvent) -> dict[str, Any]:
    """Return the runs' rows and each recipe value that is not the same in all; raises BadInput for one name twice."""
    names = [str(out) for out in outs]
    if len(set(names)) < len(names):
        raise BadInput(f"a run is named twice: {', '.join(names)}")
    records = {name: read_run(out) for name, out in zip(names, outs, strict=True)}
    flat = {name: dict(leaves(record.recipe)) | {"targets": targets(Path(name))} for name, record in records.items()}
    keys = dict.fromkeys(key for table in flat.values() for key in table)
    differing = {key: {name: table.get(key, ABSENT) for name, table in flat.items()} for key in keys}
    return {
        "runs": {name: row(Path(name)) for name in names},
        "differing": {key: values for key, values in differing.items() if len({json.dumps(one) for one in values.values()}) > 1},
    }


def row(out: Path) -> dict[str, Any]:
    """Return what a run is and how far, as one line."""
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
    }


def state(out: Path, record: RunRecord) -> str:
    """Return finished, begun, or a step from which the same command goes on."""
    if (out / "summary.json").is_file():
        return "finished"
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    if checkpoints:
        return f"resumes at {int(checkpoints[-1].name.removeprefix('step-'))}"
    return "running" if record.metrics else "begun"


def targets(out: Path) -> dict[str, str]:
    """Return what each teacher's targets are: the feature set's key, or that they are live."""
    path = out / "identities.json"
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8")).get("targets", {})
    return {name: one.get("features", one.get("source", ABSENT)) for name, one in recorded.items()}
