"""A user's whole day: photos on disk to three students of different size, ours against lightly-train and a plain PyTorch loop.

Every way trains each student for the same epochs with the same batch size, input size and precision (fp32), from the same photos, with the
same ViT-B/16 (DINOv3's shape, random weights) as teacher; whole commands are timed, start-up, indexing, extraction, statistics and files
included. Ours sees as many views of each photo as there are epochs, so that no crop is seen twice, as in the others: the teacher runs once
over them, and the students share what it gave. `ideal` is what sharing can bring at most, from the plain loop's own clock:
`Σ (teacher + student) / (teacher + Σ student)`. One round: it takes some half an hour on two cores, `--photos` makes it shorter, and
start-up then weighs more. lightly-train's defaults for losses and augmentations are its own; its work a step is not exactly ours.

    python -m benchmarks.bench_day [--photos 240] [--epochs 10] [--without-lightly]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .bench_extract import make_photos
from .figures import report

TEACHER = "vit_base_patch16_dinov3"
STUDENTS = ("mobilenetv4_conv_small", "resnet18", "resnet34")


@dataclass(frozen=True)
class Day:
    """What each way has to do."""

    photos: Path
    epochs: int
    batch: int
    px: int
    steps: int
    """Of one student: every way leaves out an epoch's last, smaller batch."""


def python(*words: object, **environment: str) -> str:
    """Run one command to its end and return what it printed; its errors are shown."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


def ours(day: Day, work: Path) -> None:
    """Index, extract and train, as a user types it."""
    store, cli = work / "store", ("-c", "from eupe_pipeline.pipeline.commands.main import main; raise SystemExit(main())")
    python(*cli, "index", day.photos, "--store", store, "--name", "photos")
    python(
        *cli, "extract-features", "--store", store, "--data", "photos", "--teacher", f"timm:{TEACHER}", "--allow-random-weights",
        "--teacher-size", f"timm:{TEACHER}={day.px}", "--views", day.epochs, "--precision", "fp32", "--workers", 0,
    )  # fmt: skip
    students = [word for name in STUDENTS for word in ("--student", f"timm:{name}")]
    settings = {
        "run.steps": day.steps, "run.batch_size": day.batch, "run.checkpoint_every": day.steps, "student.sizes_px": f"[{day.px}]",
        "precision": "'fp32'", "adapter.width": 512, "views.photometric": "'none'",
    }  # fmt: skip
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    features = ("--features", f"timm:{TEACHER}")
    python(
        *cli,
        "train",
        "--stage",
        2,
        "--store",
        store,
        "--data",
        "photos",
        "--allow-random-weights",
        *features,
        *students,
        *sets,
        "--out",
        work / "runs",
    )
    done = [json.loads(path.read_text()) for path in (work / "runs").glob("*/summary.json")]
    assert [one["steps"] for one in done] == [day.steps] * len(STUDENTS)


def plain(day: Day) -> list[dict[str, float]]:
    """Train each student by the plain loop; return where their seconds went."""
    shape = ("--px", day.px, "--epochs", day.epochs, "--batch", day.batch)
    lines = [python("-m", "benchmarks.day_plain", day.photos, "--student", name, "--teacher", TEACHER, *shape) for name in STUDENTS]
    return [json.loads(line.splitlines()[-1]) for line in lines]


def lightly(day: Day, work: Path) -> None:
    """Train each student by lightly-train."""
    shape = ("--px", day.px, "--epochs", day.epochs, "--batch", day.batch)
    for name in STUDENTS:
        python(
            "-m", "benchmarks.day_lightly", day.photos, "--student", name, *shape, "--weights", work.parent / "teacher.pth",
            "--out", work / name, LIGHTLY_TRAIN_EVENTS_DISABLED="1",
        )  # fmt: skip


def timed(begin: float) -> float:
    """Return the seconds since."""
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--without-lightly", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-day.json"))
    options = parser.parse_args()
    count = options.photos - options.photos % options.batch
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_photos(work / "photos", count, (375, 500))
        day = Day(work / "photos", options.epochs, options.batch, options.px, options.epochs * count // options.batch)
        begin = time.perf_counter()
        ours(day, work / "ours")
        seconds["ours"] = timed(begin)
        begin = time.perf_counter()
        spent = plain(day)
        seconds["plain"] = timed(begin)
        if not options.without_lightly and importlib.util.find_spec("lightly_train") is not None:
            python("-m", "benchmarks.day_lightly", day.photos, "--write-weights", work / "teacher.pth")
            begin = time.perf_counter()
            lightly(day, work / "lightly")
            seconds["lightly"] = timed(begin)
    teacher, students = [one["teacher_s"] for one in spent], [one["student_s"] for one in spent]
    ideal = (sum(teacher) + sum(students)) / (sum(teacher) / len(teacher) + sum(students))
    figures = {f"day.{name}_s": value for name, value in seconds.items()}
    figures |= {
        "day.plain/ours": seconds["plain"] / seconds["ours"],
        "day.ideal": ideal,
        "day.ours/ideal": seconds["plain"] / seconds["ours"] / ideal,
    }
    if "lightly" in seconds:
        figures["day.lightly/ours"] = seconds["lightly"] / seconds["ours"]
    details = {"photos": count, "epochs": day.epochs, "batch": day.batch, "px": day.px, "students": STUDENTS, "plain": spent}
    report(figures, {"day.ours/ideal": (">=", 0.95), "day.lightly/ours": (">", 1.0)}, details, options.out)


if __name__ == "__main__":
    main()
