"""report.html: one self-contained page that answers "did it work, and what did it cost".

Everything is inline (SVG curves, PNG pictures, one style sheet), nothing is fetched and no script runs, so the file can be mailed and opens
on a phone, dark or light. Each section appears only when its figures exist. The page prints figures, it computes none but ratios.

`results` holds (all optional): knn {random, stage2, stage3, proxy, teachers {name: …}} where each entry is {"paper": percent, "official":
{k: percent}}, alone or under "cls" and "mean_patch"; steps {name: {seconds, rows, rows_per_s}}; feature_sets {key: {bytes, rows, codec}};
live {name: {cached_s, live_s, basis}} (what the targets of the run cost from the cache and would have cost live); facts {label: text}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ..storage.atomic import write_atomically
from .charts import line_chart
from .inline_images import png_data_uri
from .pca import PcaPicture
from .progress import duration
from .run_folder import RunRecord, read_run

MODEL_WORDS = {
    "random": "student, untrained",
    "stage2": "student after stage 2",
    "stage3": "student after stage 3",
    "proxy": "proxy",
}
TOKEN_WORDS = {
    "cls": "class token",
    "mean_patch": "mean patch token",
    "mean_sampled_patch": "mean of sampled patch tokens",
    "mean_resampled_patch": "mean of resampled patch tokens",
    "mean_sampled_resampled_patch": "mean of sampled, resampled patch tokens",
}
PICTURE_PX = 256


@dataclass(frozen=True)
class KnnRow:
    """One line of the kNN table, all in percent."""

    model: str
    token: str
    kind: str  # "student", "proxy" or "teacher": picks the bar's colour
    paper: float | None
    official: dict[int, float]


def knn_rows(knn: Mapping[str, Any]) -> list[KnnRow]:
    """Return the table's lines: untrained student, student, proxy, teachers; the class token before the mean patch token."""
    entries = [(MODEL_WORDS.get(name, name), name, entry) for name, entry in knn.items() if name != "teachers"]
    order = list(MODEL_WORDS)
    entries.sort(key=lambda one: order.index(one[1]) if one[1] in order else len(order))
    rows = [row for words, name, entry in entries for row in token_rows(words, "proxy" if name == "proxy" else "student", entry)]
    teachers = knn.get("teachers", {})
    return rows + [row for name, entry in teachers.items() for row in token_rows(name, "teacher", entry)]


def token_rows(model: str, kind: str, entry: Mapping[str, Any]) -> list[KnnRow]:
    """Return the lines of one model, one for each token that was evaluated."""
    by_token = {token: entry[token] for token in TOKEN_WORDS if token in entry} or {"cls": entry}
    return [
        KnnRow(model, TOKEN_WORDS[token], kind, one.get("paper"), {int(k): v for k, v in one.get("official", {}).items()})
        for token, one in by_token.items()
    ]


def size(count: float) -> str:
    """Return bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def tiles(results: Mapping[str, Any], rows: Sequence[KnnRow]) -> list[tuple[str, str, str]]:
    """Return the page's first figures as (figure, what it is, compared with what)."""
    found = []
    student = [row for row in rows if row.kind == "student" and row.paper is not None]
    trained = [row for row in student if row.model != MODEL_WORDS["random"] and row.token == TOKEN_WORDS["cls"]]
    if trained:
        untrained = [row.paper for row in student if row.model == MODEL_WORDS["random"] and row.paper is not None]
        against = f"untrained {max(untrained):.1f} %" if untrained else "k = 10, class token"
        found.append((f"{trained[-1].paper:.1f} %", f"kNN of the {trained[-1].model}", against))
    live = results.get("live", {})
    if live:
        cached_s, live_s = (sum(one[key] for one in live.values()) for key in ("cached_s", "live_s"))
        found.append(
            (f"{live_s / cached_s:.1f} ×", "the training time with live teachers", f"{duration(live_s)} live, {duration(cached_s)} cached")
        )
    if results.get("feature_sets"):
        sets = results["feature_sets"]
        found.append((size(sum(one["bytes"] for one in sets.values())), "on disk", f"{len(sets)} feature sets"))
    if results.get("steps"):
        found.append((duration(sum(one["seconds"] for one in results["steps"].values())), "all steps together", "this machine"))
    return found


def run_section(run: RunRecord) -> dict[str, Any]:
    """Return what the template shows of one run."""
    series = run.loss_series()
    wait, rate = run.mean("wait_share"), run.mean("images_per_s")
    facts = [f"{run.metrics[-1]['step']:,} steps" if run.metrics else "no step logged yet"]
    facts += [f"{rate:,.0f} images/s"] if rate is not None else []
    facts += [f"{100 * wait:.1f} % of the time waiting for data"] if wait is not None else []
    return {
        "name": run.name,
        "chart": line_chart(series, title=f"Loss of {run.name}"),
        "legend": [(one.label, f"{one.last:.3f}") for one in series if one.points],
        "facts": facts,
        "recipe": run.recipe_rows(),
    }


def picture_table(pictures: Sequence[PcaPicture]) -> dict[str, Any]:
    """Return the picture grid: its encoders' names and, a photo each, its label and images as data URIs."""
    encoders = list(pictures[0].tokens) if pictures else []
    rows = [
        (one.label, [png_data_uri(image, longest_px=PICTURE_PX) for image in (one.image, *(one.tokens[e] for e in encoders))])
        for one in pictures
    ]
    grids = [f"{pictures[0].tokens[e].shape[0]}×{pictures[0].tokens[e].shape[1]}" for e in encoders]
    return {"encoders": list(zip(encoders, grids, strict=True)), "rows": rows}


def render(results: Mapping[str, Any], runs: Sequence[RunRecord], pictures: Sequence[PcaPicture]) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("eupe_pipeline.pipeline"), autoescape=select_autoescape(["html.j2"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"duration": duration, "size": size}
    rows = knn_rows(results.get("knn", {}))
    return environment.get_template("report.html.j2").render(
        title=results.get("title", ", ".join(run.name for run in runs) or "eupe-pipeline"),
        facts=results.get("facts", {}),
        tiles=tiles(results, rows),
        knn=rows,
        ks=sorted({k for row in rows for k in row.official}),
        steps=results.get("steps", {}),
        feature_sets=results.get("feature_sets", {}),
        live=results.get("live", {}),
        runs=[run_section(run) for run in runs],
        pictures=picture_table(pictures),
    )


def write_report(results: Mapping[str, Any], runs: Sequence[Path], pictures: Sequence[PcaPicture], out: Path) -> None:
    """Write the page to `out`; raises BadInput for a folder that is not a run's, StoreUnavailable when it cannot be written."""
    page = render(results, [read_run(folder) for folder in runs], pictures)
    write_atomically(out, page.encode())
