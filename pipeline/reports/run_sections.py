"""The sections of a page about training runs: figures, curves, recipes, and where several runs differ.

Losses are laid over each other only when the runs learn the same targets in the same stage; otherwise their scales mean different things
and each run keeps to its own card.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console.progress import duration
from ..pictures.patch_tokens import short_labels
from .charts import Axes, Series, line_chart
from .evaluation_table import read_evaluations
from .run_folder import RunRecord, read_run
from .runs import compare_runs, row, targets

Fact = tuple[str, str]


@dataclass(frozen=True)
class RunFacts:
    """A run as a page needs it: its record, a line about it, its targets, its evaluations."""

    record: RunRecord
    row: Mapping[str, Any]
    targets: Mapping[str, str]
    evaluations: Sequence[Mapping[str, Any]]


def read_facts(folder: Path) -> RunFacts:
    """Read a run's folder; raises BadInput when it is none, CacheDamaged for an evaluation that cannot be read."""
    return RunFacts(read_run(folder), row(folder), targets(folder), read_evaluations(folder))


def named(folders: Sequence[Path]) -> dict[str, RunFacts]:
    """Return the runs by the shortest end of their paths that tells them apart."""
    return dict(zip(short_labels([str(folder) for folder in folders]), map(read_facts, folders), strict=True)) if folders else {}


def chart_with_legend(series: Sequence[Series], axes: Axes, form: str = ".3f") -> dict[str, Any]:
    """Return {chart, legend: [(name, last value)]}."""
    shown = [curve for curve in series if curve.points]
    return {"chart": line_chart(shown, axes), "legend": [(curve.label, f"{curve.last:{form}}") for curve in shown]}


def agreement_charts(name: str, record: RunRecord) -> list[dict[str, Any]]:
    """Return agreement on held-out and on trained images with the gap shaded between them, and with each of several teachers."""
    if not (series := record.agreement_series()):
        return []
    axes = Axes(f"Agreement of {name} with its teachers", y="agreement with the teachers (mean cosine), the gap shaded", from_zero=False)
    legend = [(curve.label, f"{curve.points[-1][1]:.3f}") for curve in series]
    gap = ("gap (trained − held out)", f"{record.last_agreement()['gap']:+.3f}")
    charts = [{"chart": line_chart(series, axes, shaded=True), "legend": [*legend, gap]}]
    if teachers := record.agreement_by_teacher():
        by_teacher = Axes(f"Held-out agreement of {name} by teacher", y="held-out agreement with each teacher", from_zero=False)
        charts.append(chart_with_legend(teachers, by_teacher))
    return charts


def run_section(name: str, run: RunFacts) -> dict[str, Any]:
    """Return what the template shows of one run."""
    record, state = run.record, run.row
    loss = chart_with_legend(record.loss_series(), Axes(f"Loss of {name}", y="loss"))
    knn = chart_with_legend(
        record.evaluation_series(), Axes(f"Evaluations of {name}", y="evaluations while training", from_zero=False), ".1f"
    )
    rate = line_chart(record.metric_series("images_per_s", "images/s"), Axes(f"Rate of {name}", y="images/s"))
    wait = line_chart(
        record.metric_series("wait_share", "waiting", 100.0), Axes(f"Data wait of {name}", y="% of the time waiting for data", y_top=5.0)
    )
    words = [f"stage {state['stage']}" if state["stage"] else "", str(state["student"] or ""), str(state["state"])]
    return {
        "name": name,
        "what": ", ".join(word for word in words if word),
        "facts": run_facts(run),
        "charts": [loss, *([knn] if knn["chart"] else []), *agreement_charts(name, record)],
        "small": [chart for chart in (rate, wait) if chart],
        "recipe": record.recipe_rows(),
    }


def run_facts(run: RunFacts) -> list[Fact]:
    """Return (what, figure) of a run's progress and pace."""
    record = run.record
    if not record.metrics:
        return []
    steps = record.recipe.get("run", {}).get("steps")
    done = record.metrics[-1]["step"]
    wait, rate, left = record.mean("wait_share"), record.mean("images_per_s"), record.metrics[-1].get("seconds_left")
    return [
        ("steps", f"{done:,} of {steps:,}" if steps else f"{done:,}"),
        *([("images/s", f"{rate:,.0f}")] if rate is not None else []),
        *([("waiting for data", f"{100 * wait:.1f} %")] if wait is not None else []),
        *([("left", duration(left))] if left and steps and done < steps else []),
    ]


def comparison(folders: Sequence[Path], runs: Mapping[str, RunFacts]) -> dict[str, Any]:
    """Return what the template shows of several runs side by side, {} for less than two."""
    if len(runs) < 2:
        return {}
    known = all(run.targets for run in runs.values())
    alike = known and len({json.dumps([run.row["stage"], dict(run.targets)], sort_keys=True) for run in runs.values()}) == 1
    totals = [Series(name, points[0].points) for name, run in runs.items() if (points := run.record.loss_series())]
    rates = [Series(name, series.points) for name, run in runs.items() for series in run.record.metric_series("images_per_s", name)]
    knn = [Series(f"{name}: {series.label}", series.points) for name, run in runs.items() for series in run.record.evaluation_series()[:1]]
    charts = [chart_with_legend(totals, Axes("Total loss of each run", y="total loss"))] if alike else []
    charts.append(chart_with_legend(knn, Axes("Evaluations of each run", y="evaluations while training", from_zero=False), ".1f"))
    agreements = [Series(name, series.points) for name, run in runs.items() for series in run.record.agreement_series()[:1]]
    charts.append(chart_with_legend(agreements, Axes("Held-out agreement of each run", y="agreement on held-out images", from_zero=False)))
    charts.append(chart_with_legend(rates, Axes("Rate of each run", y="images/s"), ",.0f"))
    differing = compare_runs(outs=folders, on_event=lambda event: None)["differing"]
    return {
        "alike": alike,
        "charts": [chart for chart in charts if chart["chart"]],
        "rows": [(name, run.row) for name, run in runs.items()],
        "differing": [(key, [plain(value) for value in values.values()]) for key, values in differing.items()],
    }


def plain(value: Any) -> str:
    """Return a recipe's value as a reader expects it in a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {part}" for name, part in value.items()) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def run_tiles(runs: Mapping[str, RunFacts]) -> list[tuple[str, str, str]]:
    """Return the first figures of a page about one run as (figure, what it is, compared with what); [] for several."""
    if len(runs) != 1:
        return []
    (run,) = runs.values()
    record, shown = run.record, []
    for series in record.evaluation_series()[:1]:
        first, last = series.points[0], series.points[-1]
        shown.append((f"{last[1]:.1f}", series.label, f"at step {last[0]:,}; {first[1]:.1f} at step {first[0]:,}"))
    if sides := record.agreement_series():
        held_out, trained = (series.points[-1][1] for series in sides)
        against = f"{trained:.3f} on trained images, a gap of {trained - held_out:+.3f}"
        shown.append((f"{held_out:.3f}", "agreement with the teachers on held-out images", against))
    losses = [curve for curve in record.loss_series() if curve.points][:1]
    shown += [(f"{curve.last:.3f}", "loss, last 2 %", f"{curve.points[0][1]:.3f} at step {curve.points[0][0]:,}") for curve in losses]
    rate, wait = record.mean("images_per_s"), record.mean("wait_share")
    if rate is not None:
        took = record.metrics[-1].get("seconds")
        shown.append((f"{rate:,.0f}", "images/s, mean", f"{duration(took)} of training" if took else "without the first log"))
    if wait is not None:
        shown.append((f"{100 * wait:.1f} %", "of the time waiting for data", "mean over the logged steps"))
    return shown
