"""What a cached target costs in accuracy, and what views, several teachers and stages give: students in pairs, by arm and seed.

The arms are in `study_arms`, what is measured in `study_measures`, how differences are judged in `study_table`. Each student is a row of
docs/results/study.parquet as soon as it is measured; run again, the study does what is missing, then writes its page above what people
wrote of it ("What it says" stays: read it against the new figures). Seeds come one after another with all of their arms, so a study that
is stopped has fewer pairs and no holes. A student takes 40 to 60 s of one core, those of stages and of two teachers two to four times.
Students of two kinds of processor are no pair, so a study that goes on elsewhere begins above the seeds that are there (`--first-seed`).

Where there is a GPU, teachers and students run on it (`CUDA_VISIBLE_DEVICES=` for the CPU). More photos or larger ones are another scale,
with a page and a folder of its own; steps follow from the photos, so that 16 views stay fresh ones. `--dry-run` says what would be trained.

    python -m benchmarks.study [--jobs 2] [--first-seed 0] [--seeds 16] [--arms fp32 int8 …] [--all] [--page | --dry-run]
    python -m benchmarks.study --images 50000 --size-px 224 --teacher-px 224 --batch-size 256 --folder FOLDER --out PAGE.md
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from .figures import machine
from .study_arms import AGAINST, ARMS, CODECS_AND_VIEWS, EPOCHS, SAME, VIEWS, Scale, Study
from .study_measures import Pixels, measure_student
from .study_table import Row, read_rows, write_page, write_rows
from .workers import workers

PAGE = Path("docs/results/study.md")
FOLDER = Path("runs/study")
LIVE_SEEDS = 16
"""Pairs of `live` at the most: it is `fp32` to the last bit, and each takes the teacher's forward passes anew."""


def measure(folder: Path, scale: Scale, arm: str, seed: int) -> Row:
    """Train and measure one arm's student of a seed, on one thread."""
    torch.set_num_threads(1)
    study = Study(folder, scale)
    pixels = Pixels(study)
    started = time.process_time()
    measures = measure_student(study, pixels, ARMS[arm](study, seed))
    return Row(arm, seed, asdict(measures), time.process_time() - started, asdict(scale), processor())


def processor() -> str:
    """Return what trains a student here: the GPU's name, else the CPU's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(machine()["cpu"])


def with_aliases(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, and those of an arm that answers two questions under both names."""
    return [*rows] + [
        Row(name, row.seed, row.measures, 0.0, row.scale, row.processor) for name, arm in SAME.items() for row in rows if row.arm == arm
    ]


def mixed_seeds(rows: Sequence[Row], todo: Sequence[tuple[str, int]], here: str) -> list[int]:
    """Return the seeds among (arm, seed) that already have students of another processor than the one that is here."""
    taken = {row.seed for row in rows if row.processor != here}
    return sorted({seed for _, seed in todo} & taken)


def parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, Scale]:
    """Return the options and the scale that they describe; exits with a message for values that do not fit."""
    parser = argparse.ArgumentParser(prog="study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=Scale.images, help="Training photos; CIFAR-10 has 50,000.")
    parser.add_argument("--test-images", type=int, default=Scale.test_images)
    parser.add_argument("--bank-images", type=int, default=None, help="Labelled photos; default: 10,000, and no fewer than --images.")
    parser.add_argument("--steps", type=int, default=None, help=f"Of a stage; default: those of {EPOCHS} epochs.")
    parser.add_argument("--batch-size", type=int, default=Scale.batch_size, help="The learning rate follows its square root.")
    parser.add_argument("--size-px", type=int, default=Scale.size_px, help="The student's input.")
    parser.add_argument("--teacher-px", type=int, default=Scale.teacher_px, help="The teachers' input: 32 px for each token of a side.")
    parser.add_argument("--seeds", type=int, default=16, help="Seeds below this one.")
    parser.add_argument("--first-seed", type=int, default=0, help="Another processor takes seeds of its own: see above.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="*", default=None, help="Default: codecs, tokens and views.")
    parser.add_argument("--all", action="store_true", help="Also several teachers, stages and live targets.")
    parser.add_argument("--page", action="store_true", help="Only write the page from the rows that are there.")
    parser.add_argument("--dry-run", action="store_true", help="Only say which students would be trained.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if options.first_seed >= options.seeds:
        parser.error(f"--seeds {options.seeds} leaves no seed from --first-seed {options.first_seed} on; give a larger --seeds")
    if min(options.images, options.test_images, options.batch_size, options.size_px, options.teacher_px, options.steps or 1) < 1:
        parser.error("photos, steps, photos a step and sizes are at least 1")
    if unknown := [arm for arm in options.arms or () if arm not in ARMS]:
        parser.error(f"no arm {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, ARMS))}")
    bank = options.bank_images or max(Scale.bank_images, options.images)
    steps = options.steps or max(1, EPOCHS * options.images // options.batch_size)
    try:
        scale = Scale(options.images, bank, options.test_images, steps, options.batch_size, options.size_px, options.teacher_px)
    except ValueError as error:
        parser.error(str(error))
    if scale != Scale() and (options.out == PAGE or options.folder == FOLDER):
        parser.error(f"a study of another scale than {Scale()} has a page and a folder of its own; give --out and --folder")
    return options, scale


def main() -> None:
    options, scale = parsed(sys.argv[1:])
    path = options.out.with_suffix(".parquet")
    rows = read_rows(path, asdict(scale))
    if not options.page:
        todo = missing(options, rows)
        if options.dry_run:
            print(f"{len(todo)} students to train on {processor()}, {scale}", *(f"  {arm}, seed {seed}" for arm, seed in todo), sep="\n")
            return
        _run(options, scale, path, todo)
        rows = read_rows(path, asdict(scale))
    target = "make study-long" if options.all else "make study"
    command = target if scale == Scale() else f"python -m benchmarks.study {shlex.join(sys.argv[1:])}"
    write_page(with_aliases(rows), AGAINST, VIEWS, options.out, command)
    print(options.out.read_text())


def missing(options: argparse.Namespace, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return the (arm, seed) that have no row yet; raises SystemExit where some of these seeds belong to another processor."""
    seeds = range(options.first_seed, options.seeds)
    arms = options.arms or [*CODECS_AND_VIEWS, *(ARMS if options.all else ())]
    known = {(row.arm, row.seed) for row in rows}
    wanted = [(arm, seed) for seed in seeds for arm in dict.fromkeys(arms) if arm != "live" or seed < options.first_seed + LIVE_SEEDS]
    todo = [pair for pair in wanted if pair not in known]
    if mixed := mixed_seeds(rows, todo, here := processor()):
        free = 1 + max(seed for _, seed in known)
        next_command = f"--first-seed {free} --seeds {free + len(seeds)}"
        raise SystemExit(f"seeds {mixed} have students of another processor than {here}, so there would be no pairs. Next: {next_command}")
    return todo


def _run(options: argparse.Namespace, scale: Scale, path: Path, todo: Sequence[tuple[str, int]]) -> None:
    """Do what is missing; every row is written as soon as it is there."""
    started = time.perf_counter()
    with workers(options.jobs) as pool:
        running = [pool.submit(measure, options.folder, scale, arm, seed) for arm, seed in todo]
        for done, future in enumerate(as_completed(running), start=1):
            write_rows(path, [row := future.result()])
            left = (time.perf_counter() - started) / done * (len(todo) - done) / 60
            figures = ", ".join(f"{name} {value:.2f}" for name, value in row.measures.items())
            print(f"{done}/{len(todo)}  {row.arm}, seed {row.seed}: {figures}  ({row.seconds:.0f} s; {left:.0f} min left)", flush=True)


if __name__ == "__main__":
    main()
