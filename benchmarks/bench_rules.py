"""Recipes by rule against tuned ones: kNN of small students on three real sets, the ruled recipe against the best of eight.

The sets (`rule_sets`) differ in kind, number and size of their images. Each has EfficientNet-Lite0 at 128 px as teacher, of whose tokens
a quarter is stored, and the same ViT (width 64, depth 3) as student, with 1,000 steps of 32 views, the least of the rule. The opponents
are tuned on each set by a coordinate search of eight: four learning rates, then at the best of them a longer warm-up, a smaller layer
scale, other adapters, more weight decay. Their scores are those of the images that choose among them, so that the best of eight has luck
on its side, and the ruled recipe, which is fixed before, has none. All have the same views, seeds, steps and batch; a score is the mean
over seeds of kNN accuracy (ours: k = 10, cosine, class token) of held-out images, neighbours from the training images.

A finished training is appended to a file and never done again. One takes some 30 s of one quiet core.

    python -m benchmarks.bench_rules [--jobs 1] [--seeds 2] [--steps 1000] [--sets cifar10 stamps digits] [--folder runs/rules]
"""

import argparse
import json
import time
from collections.abc import Mapping
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, knn_of_model
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.launch import train
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.distillation.facts import ScaleFacts, measure_facts
from eupe_pipeline.pipeline.distillation.rules import Ruled, ruled_recipe, ruled_views
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec

from .figures import machine, report
from .rule_sets import SEEDS, make
from .workers import workers

TEACHER, TEACHER_PX, SIZE_PX = "efficientnet-lite0", 128, 64
TOKENS = 4  # of 16, as in the study: a quarter of the adapters' work
STUDENT = {"name": "vit", "width": 64, "depth": 3, "heads": 2}
RATES = (7e-4, 1.5e-3, 4e-3, 6e-3)  # beside the rule's 3e-3
AT_THE_BEST_RATE: dict[str, dict[str, Any]] = {
    "warm-up 20 %": {"optimizer.warmup_share": 0.2},
    "layer scale 0.1": {"student.options.layer_scale": 0.1},
    "adapters 1,024": {"adapter.width": 1024},
    "decay 0.05": {"optimizer.weight_decay": 0.05},
}
COMMON: dict[str, Any] = {  # of the tuned ones, where the search does not change it
    "student.options.layer_scale": 1.0, "optimizer.warmup_share": 0.05, "optimizer.beta2": 0.95, "optimizer.weight_decay": 1e-4,
    "adapter.width": 256, "student.initial_weights": "timm",
}  # fmt: skip
TARGET, UNTRAINED = 0.97, "untrained"


@dataclass(frozen=True)
class Row:
    """One training."""

    set: str
    recipe: str
    seed: int
    steps: int
    values: dict[str, Any]
    knn_percent: float
    seconds: float


class Bench:
    """One store and one folder of runs; processes share them."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.store = FeatureStore.create(str(folder / "store"))

    def prepare(self, name: str, seeds: int) -> None:
        """Index a set and cache the teacher's tokens of its views, for each seed."""
        for split, source in zip(("train", "test"), make(name, self.folder / "data"), strict=True):
            if not any(key.startswith(f"{name}-{split}@") for key in self.store.list_datasets()):
                build_index(self.store.objects, str(source), f"{name}-{split}")
        for seed in range(seeds):
            self.features(name, seed)

    def facts(self, name: str) -> ScaleFacts:
        """Return the facts of a set."""
        teacher = TeacherRequest(TEACHER, size_px=TEACHER_PX)
        return measure_facts(self.store, f"{name}-train", [teacher], STUDENT, precision="fp32")

    def ruled(self, name: str, seed: int) -> Ruled:
        """Return the recipe by rule."""
        facts = self.facts(name)
        spec, reasons = ruled_views(facts, epochs=32 * self.steps / facts.images, seed=seed)
        ruled = ruled_recipe(2, facts, steps=self.steps, seed=seed, views=(replace(spec, pixels=StoredPixels(SIZE_PX)), reasons))
        for option, value in STUDENT.items():
            if option != "name":
                ruled = ruled.with_value(f"student.options.{option}", value, "ours: the benchmark's student")
        return ruled.with_value("run.checkpoint_every", self.steps, "ours: one").with_value("precision", "fp32", "ours: one core")

    def features(self, name: str, seed: int) -> str:
        """Return the key of the teacher's feature set over the ruled views of a seed."""
        return self._extract(f"{name}-train", name, self.ruled(name, seed).views)

    def _extract(self, data: str, name: str, views: ViewSpec) -> str:
        teacher = TeacherRequest(TEACHER, size_px=TEACHER_PX)
        options = ExtractOptions(self.store.url, data, (teacher,), views=views, statistics_batches=16, workers=0, tokens_per_view=TOKENS)
        (key,) = extract_features(options)["features"].values()
        return str(key)

    def score(self, name: str, recipe: str, seed: int, values: Mapping[str, Any]) -> float:
        """Train a student by the ruled recipe with some values changed; return its kNN percent, or that of its random weights."""
        ruled = self.ruled(name, seed)
        for key, value in values.items():
            ruled = ruled.with_value(key, value, "ours: tuned")
        out = self.folder / "runs" / name / f"{digest(dict(ruled.values))[:12]}-{seed}"
        train(TrainOptions(ruled.recipe(), self.store.url, (self.features(name, seed),), out, f"{name}-train", ruled.reasons))
        if recipe == UNTRAINED:
            out = out / "initial"
        return float(knn_of_model(self.store, str(out), f"{name}-train", f"{name}-test", EvaluationSize())["cls"]["ours"])


def measure(folder: Path, name: str, recipe: str, seed: int, steps: int, values: dict[str, Any]) -> Row:
    """Measure one training on one thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    percent = Bench(folder, steps).score(name, recipe, seed, values)
    return Row(name, recipe, seed, steps, values, percent, time.perf_counter() - started)


class Results:
    """Finished trainings, in a file that only grows."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = [row for row in (Row(**json.loads(line)) for line in lines) if row.steps == steps]

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(f"{json.dumps(asdict(row))}\n")
        print(f"{row.set}, {row.recipe}, seed {row.seed}: {row.knn_percent:.2f} %  ({row.seconds:.0f} s)", flush=True)

    def has(self, name: str, recipe: str, seed: int, values: Mapping[str, Any]) -> bool:
        """Return whether a training is done; one of the same name by other values, such as an older rule's, does not count."""
        return any((row.set, row.recipe, row.seed, row.values) == (name, recipe, seed, dict(values)) for row in self.rows)

    def mean(self, name: str, recipe: str, values: Mapping[str, Any]) -> float:
        """Return the mean over seeds."""
        found = [row.knn_percent for row in self.rows if (row.set, row.recipe, row.values) == (name, recipe, dict(values))]
        return sum(found) / len(found)


def run_all(pool: Executor, results: Results, folder: Path, name: str, recipes: dict[str, dict[str, Any]], seeds: int) -> None:
    """Do what is missing of some recipes of a set, over seeds."""
    pairs = [(recipe, seed) for seed in range(seeds) for recipe in recipes]
    todo = [(recipe, seed) for recipe, seed in pairs if not results.has(name, recipe, seed, recipes[recipe])]
    running = [pool.submit(measure, folder, name, recipe, seed, results.steps, recipes[recipe]) for recipe, seed in todo]
    for done in as_completed(running):
        results.add(done.result())


def search(
    pool: Executor, results: Results, folder: Path, name: str, ruled: dict[str, Any], seeds: int
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train a set's students: by rule, untrained, and by the eight recipes of the search; return the values of the eight by name."""
    run_all(pool, results, folder, name, {"ruled": ruled}, seeds)
    run_all(pool, results, folder, name, {UNTRAINED: ruled}, seeds)  # needs the runs before
    rates = {f"rate {rate:g}": COMMON | {"optimizer.learning_rate": rate} for rate in RATES}
    run_all(pool, results, folder, name, rates, seeds)
    best = rates[max(rates, key=lambda recipe: results.mean(name, recipe, rates[recipe]))]
    others = {recipe: best | change for recipe, change in AT_THE_BEST_RATE.items()}
    run_all(pool, results, folder, name, others, seeds)
    return rates | others


def decided_values(ruled: Ruled) -> dict[str, Any]:
    """Return what a rule decided that the search decides, too: with these a changed rule is measured anew."""
    return {key: ruled.values[key] for key in (*COMMON, "optimizer.learning_rate", "optimizer.clip_norm", "run.batch_size")}


def table(results: Results, ruled: Mapping[str, dict[str, Any]], tuned: Mapping[str, dict[str, dict[str, Any]]]) -> str:
    """Return the rows of the table."""
    names = list(ruled)
    lines = [f"| recipe | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    cells = {name: {recipe: results.mean(name, recipe, values) for recipe, values in tuned[name].items()} for name in names}
    best = {name: max(cells[name].values()) for name in names}
    for recipe in cells[names[0]]:
        row = [f"**{cells[name][recipe]:.2f}**" if cells[name][recipe] == best[name] else f"{cells[name][recipe]:.2f}" for name in names]
        lines.append(f"| {recipe} | {' | '.join(row)} |")
    own = {name: results.mean(name, "ruled", ruled[name]) for name in names}
    lines.append(f"| **by rule** | {' | '.join(f'{own[name]:.2f}' for name in names)} |")
    lines.append(f"| by rule, of the best of eight | {' | '.join(f'{100 * own[name] / best[name]:.1f} %' for name in names)} |")
    lines.append(f"| the rule's learning rate | {' | '.join(str(ruled[name]['optimizer.learning_rate']) for name in names)} |")
    lines.append(f"| untrained | {' | '.join(f'{results.mean(name, UNTRAINED, ruled[name]):.2f}' for name in names)} |")
    return "\n".join(lines)


def write_page(page: Path, rows: str) -> None:
    """Write the table; what people wrote below "What it says" stays."""
    said = page.read_text().partition("## What it says")[2] if page.is_file() else "\n\nNothing yet.\n"
    here = machine()
    text = f"""# Recipes by rule against tuned ones

kNN accuracy in percent (ours: k = 10, cosine, class token) of students on held-out images, means over seeds; the best of the eight
tuned recipes is bold. A ViT of width 64 and depth 3, taught by EfficientNet-Lite0. Sets, search and seeds are described under
[recipes by rule](../recipes-by-rule.md#validation).

{rows}

{here["cpu"]}, {here["cores"]} cores, Python {here["python"]}, `make bench-rules`.

## What it says{said}"""
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=None, help="Of every set; default: 2, of the stamps 4.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sets", nargs="*", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--folder", type=Path, default=Path("runs/rules"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-rules.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench, results = Bench(given.folder, given.steps), Results(given.folder / "trainings.jsonl", given.steps)
    seeds = {name: given.seeds or SEEDS[name] for name in given.sets}
    for name in given.sets:
        bench.prepare(name, seeds[name])
    ruled = {name: decided_values(bench.ruled(name, 0)) for name in given.sets}
    with workers(given.jobs) as pool:
        tuned = {name: search(pool, results, given.folder, name, ruled[name], seeds[name]) for name in given.sets}
    figures = {}
    for name in given.sets:
        best_of_eight = max(results.mean(name, recipe, values) for recipe, values in tuned[name].items())
        figures[f"rules.{name}_ruled/best"] = results.mean(name, "ruled", ruled[name]) / best_of_eight
    text = table(results, ruled, tuned)
    write_page(given.out.with_name("rules.md"), text)
    print(text)
    details = {"steps": given.steps, "seeds": seeds, "ruled": ruled, "rows": [asdict(row) for row in results.rows]}
    report(figures, dict.fromkeys(figures, (">=", TARGET)), details, given.out)


if __name__ == "__main__":
    main()
