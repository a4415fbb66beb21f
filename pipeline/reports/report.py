"""report.html: one self-contained page that answers "did it work, and what did it cost": of a run, of several, of feature sets.

Everything is inline (curves, pictures, one style sheet), nothing is fetched and no script runs, so the file can be mailed and opens
on a phone, dark or light. Each section appears only when its figures exist; what was asked for and could not be shown is listed in `notes`.
The page prints figures, it computes none but ratios.

`results` holds (all optional): knn {random, stage2, stage3, proxy, teachers {name: …}} where each entry is {"ours": percent, "paper":
percent, "official": {k: percent}}, alone or under "cls" and "mean_patch"; steps {name: {seconds, rows, rows_per_s}}; feature_sets {key:
{bytes, rows, codec}}; live {name: {cached_s, live_s, basis}} (what the targets of the run cost from the cache and would have cost live);
facts {label: text}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ...storage.objects.atomic_files import write_atomically
from ...student.probes.knn_names import rename_protocols
from ..console.progress import duration
from ..pictures.neighbours import Gallery
from ..pictures.pca import PcaPicture
from ..pictures.similarity import SimilarityPicture
from .evaluation_table import details, evaluation_rows, title_of
from .picture_sections import gallery_rows, picture_strips, similarity_strips
from .run_sections import comparison, named, run_section, run_tiles
from .store_health import Health

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


@dataclass(frozen=True)
class Contents:
    """What a page is about; everything but one of runs, results and health may be absent."""

    runs: Sequence[Path] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[PcaPicture] = ()
    similarity: Sequence[SimilarityPicture] = ()
    neighbours: Mapping[str, Sequence[Gallery]] = field(default_factory=dict)
    """{feature set's key: galleries}"""
    health: Sequence[Health] = ()
    notes: Sequence[str] = ()
    """What was asked for and could not be shown, and why."""


@dataclass(frozen=True)
class KnnRow:
    """One line of the kNN table, all in percent."""

    model: str
    token: str
    kind: str  # "student", "proxy" or "teacher": picks the bar's colour
    ours: float | None
    official: dict[int, float]
    paper: float | None = None


def knn_rows(knn: Mapping[str, Any]) -> list[KnnRow]:
    """Return the table's lines: untrained student, student, proxy, teachers; the class token before the mean patch token."""
    entries = [(_model_words(name), name, entry) for name, entry in knn.items() if name != "teachers"]
    order = list(MODEL_WORDS)
    entries.sort(key=lambda entry: order.index(entry[1]) if entry[1] in order else len(order))
    rows = [row for words, name, entry in entries for row in token_rows(words, "proxy" if name == "proxy" else "student", entry)]
    teachers = knn.get("teachers", {})
    return rows + [row for name, entry in teachers.items() for row in token_rows(name, "teacher", entry)]


def _model_words(name: str) -> str:
    """Return what a model is, for a table about several students with the student's name: `vit-mini: stage2`."""
    student, _, part = name.rpartition(": ")
    words = MODEL_WORDS.get(part, part)
    return f"{student}, {words.removeprefix('student').lstrip(', ')}" if student else words


def _the(model: str) -> str:
    """Return the words of a model in a sentence; one that is named by its student needs no article."""
    return model if ", after" in model else f"the {model}"


def token_rows(model: str, kind: str, entry: Mapping[str, Any]) -> list[KnnRow]:
    """Return the lines of one model, one for each token that was evaluated."""
    today = rename_protocols(entry)
    by_token = {token: today[token] for token in TOKEN_WORDS if token in today} or {"cls": today}
    return [
        KnnRow(
            model,
            TOKEN_WORDS[token],
            kind,
            figures.get("ours"),
            {int(k): v for k, v in figures.get("official", {}).items()},
            figures.get("paper"),
        )
        for token, figures in by_token.items()
    ]


def size(count: float) -> str:
    """Return bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def health_tiles(health: Sequence[Health]) -> list[tuple[str, str, str]]:
    """Return the first figures of a page about feature sets."""
    if not health:
        return []
    committed, shards = sum(state.committed for state in health), sum(state.shards for state in health)
    failed = sum(state.failed for state in health)
    return [
        (f"{100 * committed / shards:.0f} %", "of the shards are there", f"{committed:,} of {shards:,}"),
        (f"{sum(state.rows for state in health):,}", "cached views", f"{len(health)} feature set{'s' if len(health) > 1 else ''}"),
        (size(sum(state.bytes for state in health)), "on disk", f"{sum(state.images for state in health):,} images"),
        (f"{failed:,}", "failed images", "have no tokens" if failed else "every image has tokens"),
    ]


def tiles(results: Mapping[str, Any], rows: Sequence[KnnRow]) -> list[tuple[str, str, str]]:
    """Return the page's first figures as (figure, what it is, compared with what)."""
    shown = []
    student = [row for row in rows if row.kind == "student" and row.ours is not None]
    trained = [row for row in student if not row.model.endswith("untrained") and row.token == TOKEN_WORDS["cls"]]
    if trained:
        untrained = [row.ours for row in student if row.model.endswith("untrained") and row.ours is not None]
        against = f"untrained {max(untrained):.1f} %" if untrained else "k = 10, class token"
        shown.append((f"{trained[-1].ours:.1f} %", f"kNN of {_the(trained[-1].model)}", against))
    live = results.get("live", {})
    if live:
        cached_s, live_s = (sum(entry[key] for entry in live.values()) for key in ("cached_s", "live_s"))
        shown.append(
            (f"{live_s / cached_s:.1f} ×", "the training time with live teachers", f"{duration(live_s)} live, {duration(cached_s)} cached")
        )
    if results.get("feature_sets"):
        sets = results["feature_sets"]
        shown.append((size(sum(entry["bytes"] for entry in sets.values())), "on disk", f"{len(sets)} feature sets"))
    if results.get("steps"):
        shown.append((duration(sum(entry["seconds"] for entry in results["steps"].values())), "all steps together", "this machine"))
    return shown


def environment() -> Environment:
    """Return the templates' environment: everything escaped, an unknown name an error."""
    made = Environment(
        loader=PackageLoader("eupe_pipeline.pipeline.reports"), autoescape=select_autoescape(["html.j2"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"duration": duration, "size": size}
    return made


def render(contents: Contents) -> str:
    """Return the page; raises BadInput for a folder that is not a run's, CacheDamaged for an evaluation that cannot be read."""
    results, runs = contents.results, named(contents.runs)
    rows = knn_rows(results.get("knn", {}))
    evaluated = evaluation_rows({name: run.evaluations for name, run in runs.items()})
    title = results.get("title") or ", ".join(runs) or ", ".join(item.key.split("@")[0] for item in contents.health) or "eupe-pipeline"
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=results.get("facts", {}),
            notes=contents.notes,
            tiles=tiles(results, rows) or run_tiles(runs) or ([] if runs else health_tiles(contents.health)),
            knn=rows,
            ks=sorted({k for row in rows for k in row.official}),
            evaluations=evaluated,
            columns={name: title_of(name) for row in evaluated[:1] for name in row.figures},
            evaluation_details=[(name, *detail) for name, run in runs.items() for detail in details(run.evaluations)],
            steps=results.get("steps", {}),
            feature_sets=results.get("feature_sets", {}),
            live=results.get("live", {}),
            comparison=comparison(contents.runs, runs),
            runs=[run_section(name, run) for name, run in runs.items()],
            pictures=picture_strips(contents.pictures),
            similarity=similarity_strips(contents.similarity),
            neighbours={key: gallery_rows(galleries) for key, galleries in contents.neighbours.items()},
            health=contents.health,
        )
    )


def write_report(contents: Contents, out: Path) -> None:
    """Write the page to `out`; raises as `render`, and StoreUnavailable when it cannot be written."""
    write_atomically(out, render(contents).encode(errors="backslashreplace"))
