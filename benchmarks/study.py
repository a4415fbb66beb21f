"""What a cached target costs in accuracy, and what views, several teachers and stages give: students in pairs, by arm and seed.

The arms are in `study_arms`, what is measured in `study_measures`, how differences are judged in `study_table`. Each student is a row of
docs/results/study.parquet as soon as it is measured; run again, the study does what is missing, then writes its page above what people
wrote of it ("What it says" stays: read it against the new figures). Seeds come one after another with all of their arms, so a study that
is stopped has fewer pairs and no holes. A student takes 40 to 60 s of one core, those of stages and of two teachers two to four times.
Students of two kinds of CPU are no pair, so a study that goes on elsewhere begins above the seeds that are there (`--first-seed`).

    python -m benchmarks.study [--jobs 2] [--first-seed 0] [--seeds 16] [--arms fp32 int8 …] [--all] [--page] [--folder runs/study]
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from .figures import machine
from .study_arms import AGAINST, ARMS, CODECS_AND_VIEWS, SAME, VIEWS, Scale, Study
from .study_measures import Pixels, measure_student
from .study_table import Row, read_rows, write_page, write_rows
from .workers import workers

LIVE_SEEDS = 16
"""Pairs of `live` at the most: it is `fp32` to the last bit, and each takes the teacher's forward passes anew."""


def measure(folder: Path, scale: Scale, arm: str, seed: int) -> Row:
    """Train and measure one arm's student of a seed, on one thread."""
    torch.set_num_threads(1)
    study = Study(folder, scale)
    pixels = Pixels(study)
    started = time.process_time()
    measures = measure_student(study, pixels, ARMS[arm](study, seed))
    return Row(arm, seed, asdict(measures), time.process_time() - started, asdict(scale), str(machine()["cpu"]))


def with_aliases(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, and those of an arm that answers two questions under both names."""
    return [*rows] + [
        Row(name, row.seed, row.measures, 0.0, row.scale, row.cpu) for name, arm in SAME.items() for row in rows if row.arm == arm
    ]


def mixed_seeds(rows: Sequence[Row], todo: Sequence[tuple[str, int]], cpu: str) -> list[int]:
    """Return the seeds among (arm, seed) that already have students of another CPU."""
    taken = {row.seed for row in rows if row.cpu != cpu}
    return sorted({seed for _, seed in todo} & taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=Scale.images)
    parser.add_argument("--test-images", type=int, default=Scale.test_images)
    parser.add_argument("--steps", type=int, default=Scale.steps)
    parser.add_argument("--seeds", type=int, default=16, help="Seeds below this one.")
    parser.add_argument("--first-seed", type=int, default=0, help="A machine of another CPU takes seeds of its own: see above.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="*", default=None, help="Default: codecs, tokens and views.")
    parser.add_argument("--all", action="store_true", help="Also several teachers, stages and live targets.")
    parser.add_argument("--page", action="store_true", help="Only write the page from the rows that are there.")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.md"))
    options = parser.parse_args()
    if options.first_seed >= options.seeds:
        parser.error(f"--seeds {options.seeds} leaves no seed from --first-seed {options.first_seed} on; give a larger --seeds")
    scale = Scale(options.images, test_images=options.test_images, steps=options.steps)
    path = options.out.with_suffix(".parquet")
    rows = read_rows(path, asdict(scale))
    if not options.page:
        rows = _run(options, scale, path, rows)
    write_page(with_aliases(rows), AGAINST, VIEWS, options.out, "make study-long" if options.all else "make study")
    print(options.out.read_text())


def _run(options: argparse.Namespace, scale: Scale, path: Path, rows: list[Row]) -> list[Row]:
    """Do what is missing; every row is written as soon as it is there."""
    seeds = range(options.first_seed, options.seeds)
    arms = options.arms or [*CODECS_AND_VIEWS, *(ARMS if options.all else ())]
    known = {(row.arm, row.seed) for row in rows}
    wanted = [(arm, seed) for seed in seeds for arm in dict.fromkeys(arms) if arm != "live" or seed < options.first_seed + LIVE_SEEDS]
    todo = [pair for pair in wanted if pair not in known]
    if mixed := mixed_seeds(rows, todo, here := str(machine()["cpu"])):
        free = 1 + max(seed for _, seed in known)
        next_command = f"--first-seed {free} --seeds {free + len(seeds)}"
        raise SystemExit(f"seeds {mixed} have students of another CPU than {here}, so there would be no pairs. Next: {next_command}")
    started = time.perf_counter()
    with workers(options.jobs) as pool:
        running = [pool.submit(measure, options.folder, scale, arm, seed) for arm, seed in todo]
        for done, future in enumerate(as_completed(running), start=1):
            rows.append(row := future.result())
            write_rows(path, rows)
            left = (time.perf_counter() - started) / done * (len(todo) - done) / 60
            figures = ", ".join(f"{name} {value:.2f}" for name, value in row.measures.items())
            print(f"{done}/{len(todo)}  {row.arm}, seed {row.seed}: {figures}  ({row.seconds:.0f} s; {left:.0f} min left)", flush=True)
    return rows


if __name__ == "__main__":
    main()
