"""Half an hour of everything at once on one store, with kills: does anything leak, grow or differ?

Round after round, the commands that a user types, on one local store: `index` of a folder that grows, `extract-features` with two teachers
by a Ray worker, two trainings side by side, `features verify`, `features prune` of what the round before extracted. Every 20 to 60 seconds
SIGKILL takes the whole process tree of a command that runs, of two the one that was killed less often, and the same command is run again.
The kills come by the clock, however slow the machine; when the time is over they stop, and the round ends. The memory, open files and
processes of each command's tree are sampled (`soak_watch`). Two commands more live throughout, on the same store and never killed: a
training, and an extraction by a Ray worker; what they hold minute after minute, without the first minutes, shows a leak within a process,
and at the end SIGTERM stops them. At the end nothing may be left: processes, shared memory, leases, locks, probes, temporary files (those
of killed writers are made a day old first, when the next command sweeps them), Ray's sessions of killed processes; the whole store
verifies; and each round's trainings, killed or not, have the weights of one that ran undisturbed.

    python -m benchmarks.soak [--minutes 30] [--out FOLDER]
"""

import argparse
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from PIL import Image

from .figures import report
from .kill_extract import kill_tree, marked
from .soak_throughout import WARM_UP, Throughout, outlived, start
from .soak_watch import Leftovers, Sample, growth, ray_folder

PHOTOS, GROWTH, POLL_S, FLAT = 64, 2, 0.2, 0.10
LONG_PHOTOS, LONG_PX = 12_000, 640  # of the extraction that lives throughout: hours of work, of whose tokens four a view are kept
OF_RAY = ("raylet", "gcs_server", "Ray's helpers")  # shown, and held to the target as a part of the whole alone
SLACK_S = 15.0  # beyond the longest pause, until a command runs again and its tree is gone: more between two kills is none by the clock
NAMES = ("both", "one")
TARGETS = {
    "soak.kills": (">=", 1.0), "soak.failures": ("<=", 0.0), "soak.leaks": ("<=", 0.0), "soak.different_weights": ("<=", 0.0),
    "soak.memory_growth": ("<=", FLAT), "soak.longest_between_kills_s": ("<=", 60 + SLACK_S),
}  # fmt: skip
RECIPE = """
[stage2]
precision = "fp32"
[stage2.student]
architecture = "vit-mini"
sizes_px = [32]
[stage2.teacher]
source = "cached"
[stage2.adapter]
width = 32
[stage2.optimizer]
learning_rate = 1e-3
[stage2.run]
steps = {steps}
batch_size = 16
checkpoint_every = 10
log_every = 10
"""


class Soak:
    """The store, the commands' processes, what they used, and the next kill."""

    def __init__(self, out: Path, minutes: float, pause_s: tuple[float, float], steps: int, seed: int, workers: int = 1) -> None:
        self.out, self.pause_s, self.workers, self.random = out, pause_s, workers, np.random.default_rng(seed)
        self.minutes = minutes
        self.samples: list[Sample] = []
        self.throughout = Throughout(out)
        self.failures: list[str] = []
        self.kills: list[dict[str, Any]] = []
        self.photos: dict[str, int] = {}
        self.began = self.deadline = self.kill_at = float("inf")
        (out / "recipe.toml").write_text(RECIPE.format(steps=steps))

    def begin(self) -> None:
        """Start the clock of the kills, and of the whole."""
        self.began = time.monotonic()
        self.deadline = self.began + self.minutes * 60
        self._plan_kill()

    def _plan_kill(self) -> None:
        self.kill_at = time.monotonic() + float(self.random.uniform(*self.pause_s))

    def grow(self, folder: str, count: int) -> None:
        """Write more photos: noise, in three classes."""
        there = self.photos.get(folder, 0)
        for number in range(there, there + count):
            path = self.out / folder / f"class{number % 3}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (48, 40, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        self.photos[folder] = there + count

    def run(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Run commands side by side to their ends, each by its phase's name; kill one when it is time, and run it again."""
        running = {phase: self._start(phase, words) for phase, words in commands.items()}
        killed = dict.fromkeys(commands, 0)
        while running:
            time.sleep(POLL_S)
            self.throughout.look()
            for phase, (child, mark, sample) in list(running.items()):
                if child.poll() is None:
                    sample.look(sorted(marked(mark)))
                    continue
                self._end(phase, child, mark, sample)
                del running[phase]
            if running and self.kill_at <= time.monotonic() < self.deadline:
                phase = min(sorted(running), key=lambda phase: (killed[phase], self.random.random()))
                killed[phase] += 1
                self._kill(phase, *running.pop(phase))
                if not self._is_done(commands[phase]):
                    running[phase] = self._start(phase, commands[phase])
                    running[phase][2].again = True

    def _start(self, phase: str, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], str, Sample]:
        child, mark = start(self.out, phase, words)
        sample = Sample(phase, seconds=time.monotonic())
        self.samples.append(sample)
        return child, mark, sample

    def _end(self, phase: str, child: subprocess.Popen[bytes], mark: str, sample: Sample) -> None:
        sample.seconds = time.monotonic() - sample.seconds
        if child.returncode:
            self.failures.append(f"{phase}: status {child.returncode}, see {phase}.log")
        self.failures += outlived(phase, mark)

    def _kill(self, phase: str, child: subprocess.Popen[bytes], mark: str, sample: Sample) -> None:
        processes = kill_tree(mark)
        child.wait()
        sample.killed, sample.seconds = True, time.monotonic() - sample.seconds
        at_s = round(time.monotonic() - self.began, 1)
        self.kills.append({"phase": phase, "at_s": at_s, "after_s": round(sample.seconds, 1), "processes": processes})
        self._plan_kill()

    def longest_between_kills(self) -> float:
        """Return the most seconds without a kill, from the beginning to the end of the time."""
        moments = [0.0, *(kill["at_s"] for kill in self.kills), self.minutes * 60]
        return float(max(later - earlier for earlier, later in pairwise(moments)))

    def _is_done(self, words: Sequence[str]) -> bool:
        """Return whether a killed command has nothing left to do: a set that is pruned is unknown."""
        return words[1] == "prune" and words[2] not in FeatureStore.open(str(self.out / "store")).list_features()

    def flatness(self) -> dict[str, float]:
        """Return by how much the undisturbed commands of each phase grew in memory."""
        phases = {sample.phase for sample in self.samples}
        whole = [one for one in self.samples if not one.killed and not one.again and one.memory_mb]
        peaks = {phase: [one.memory_mb for one in whole if one.phase == phase] for phase in phases}
        return {phase: grown for phase, values in sorted(peaks.items()) if (grown := growth(values)) is not None}


def make_teacher(folder: Path, seed: int) -> None:
    """Save a random small ViT as a run, which serves as a teacher."""
    torch.manual_seed(seed)
    student = Student(build_encoder({"name": "vit-mini", "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, folder / "model", size_px=16, targets={})


def train_words(out: Path, run: str, features: Sequence[str], data: str) -> list[str]:
    """Return a training's command."""
    named = [word for key in features for word in ("--features", key)]
    words = ["train", "--stage", "2", "--recipe", str(out / "recipe.toml"), "--store", str(out / "store"), "--data", data]
    return [*words, *named, "--out", str(out / "runs" / run)]


def trainings(out: Path, label: object, first: tuple[str, list[str]]) -> dict[str, list[str]]:
    """Return the commands of two trainings, of both teachers and of one, by their phases."""
    features = dict(zip(NAMES, (first[1], first[1][:1]), strict=True))
    return {f"train {name}": train_words(out, f"{label}-{name}", features[name], first[0]) for name in NAMES}


def plan(soak: Soak) -> list[str]:
    """Return the options that all extractions share."""
    return ["--shard-images", "8", "--statistics-batches", "2", "--workers", str(soak.workers), "--codec", "int8"]


def throughout(soak: Soak, first: tuple[str, list[str]]) -> dict[str, list[str]]:
    """Return the commands that live throughout, by their phases; neither comes to its end."""
    store, teacher = ["--store", str(soak.out / "store")], str(soak.out / "teachers" / "throughout")
    extract = ["extract-features", *store, "--data", "more", "--teacher", teacher, "--teacher-size", f"{teacher}={LONG_PX}", *plan(soak)]
    train = train_words(soak.out, "throughout", first[1], first[0])
    return {
        "extract throughout": [*extract, "--tokens-per-view", "4", "--batch-size", "4"],
        "train throughout": [*train, "--set", "run.steps=1000000", "--set", "run.checkpoint_every=200"],
    }


def one_round(soak: Soak, number: int, first: tuple[str, list[str]] | None) -> tuple[str, list[str]]:
    """Grow, extract, train twice, verify, prune; return the first version of the dataset and its feature sets, which stay."""
    out, store = soak.out, ["--store", str(soak.out / "store")]
    soak.grow("photos", GROWTH if number else PHOTOS)
    soak.run({"index": ["index", str(out / "photos"), *store, "--name", "photos"]})
    teachers = [word for name in ("a", "b") for word in ("--teacher", str(out / "teachers" / name))]
    soak.run({"extract": ["extract-features", *store, "--data", "photos", *teachers, *plan(soak), "--views", "2"]})
    opened = FeatureStore.open(str(out / "store"))
    if first is None:
        first = next(key for key in opened.list_datasets() if key.startswith("photos@")), opened.list_features()
        soak.throughout.start(throughout(soak, first))
    soak.run(trainings(out, number, first))
    soak.run({"verify": ["features", "verify", *store]})
    for key in opened.list_features():
        if key not in first[1] and not key.startswith("throughout@"):
            soak.run({"prune": ["features", "prune", key, *store]})
    return first


def weights(run: Path) -> str:
    """Return the digest of a run's weights."""
    return sha256((run / "model" / "backbone.safetensors").read_bytes()).hexdigest()


def sweep_as_tomorrow(soak: Soak, first: tuple[str, list[str]]) -> None:
    """Make temporary files a day old, then do what a user does tomorrow: extract, train, and prune everything but the datasets."""
    for path in soak.out.rglob(".tmp-*"):
        os.utime(path, (time.time() - 90_000,) * 2)
    for session in ray_folder(soak.out).glob("ray/session_2*"):
        for path in (session, *(session / "logs").glob("*")):
            os.utime(path, (time.time() - 90_000,) * 2)
    soak.run({"verify": ["features", "verify", "--store", str(soak.out / "store")]})
    one_round(soak, 10**6, first)
    for key in FeatureStore.open(str(soak.out / "store")).list_features():
        soak.run({"prune": ["features", "prune", key, "--store", str(soak.out / "store")]})


def soak_all(soak: Soak) -> dict[str, Any]:
    """Run rounds until the time is over; then compare, verify and look for what is left."""
    before, number = Leftovers.look(soak.out), 0
    soak.grow("more", LONG_PHOTOS)
    soak.run({"index": ["index", str(soak.out / "more"), "--store", str(soak.out / "store"), "--name", "more"]})
    soak.begin()
    first = None
    while first is None or time.monotonic() < soak.deadline:
        first = one_round(soak, number, first)
        number += 1
    soak.failures += soak.throughout.stop()
    soak.run(trainings(soak.out, "undisturbed", first))
    runs = soak.out / "runs"
    undisturbed = {name: weights(runs / f"undisturbed-{name}") for name in NAMES}
    different = [f"{n}-{name}" for n in range(number) for name in NAMES if weights(runs / f"{n}-{name}") != undisturbed[name]]
    sweep_as_tomorrow(soak, first)
    left = Leftovers.look(soak.out).beyond(before)
    return {"rounds": number, "left": left, "different_weights": different}


def table(soak: Soak, found: Mapping[str, Any], minutes: float) -> str:
    """Return the document of a soak."""
    flat = soak.flatness()
    lines = [
        "# Soak\n",
        f"{minutes:g} minutes on one store, {found['rounds']} rounds, {len(soak.kills)} kills of whole process trees,",
        f"at most {soak.longest_between_kills():.0f} s between two; `make soak`.\n",
        "| command | runs | killed | memory at its most, MB | the last third of the runs against the first | open files | processes |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase in sorted({sample.phase for sample in soak.samples}):
        of = [sample for sample in soak.samples if sample.phase == phase]
        killed, grown = sum(sample.killed for sample in of), flat.get(phase)
        peak, files, processes = (max(getattr(sample, name) for sample in of) for name in ("memory_mb", "files", "processes"))
        growth_text = "too few runs" if grown is None else f"{grown:+.1%}"
        lines.append(f"| {phase} | {len(of)} | {killed} | {peak:,.0f} | {growth_text} | {files} | {processes} |")
    lines += [
        "",
        "Memory is that of anonymous and shared pages over all processes of a command; pages of files (libraries, mapped shards)",
        "come and go with other programs and are left out. Growth compares medians of runs that no kill disturbed.",
        f"Two commands live throughout; the first {WARM_UP:.0%} of their lives, in which caches fill, are left out.\n",
        "| lives throughout | minutes | what | first third, MB | last third, MB | growth |",
        "|---|---|---|---|---|---|",
    ]
    for phase, rows in soak.throughout.flatness().items():
        minutes_of = soak.throughout.courses[phase].moments[-1][0] / 60
        for name, (values, grown) in rows.items():
            start, end = (float(np.median(part)) for part in (values[: len(values) // 3], values[-(len(values) // 3) :]))
            unit = "" if name == "open files" else ".1f"
            lines.append(f"| {phase} | {minutes_of:.0f} | {name} | {start:{unit}} | {end:{unit}} | {grown:+.1%} |")
    lines += [
        "",
        "The target, growth below 10 %, holds for each command above, and for what lives throughout as a whole, its own processes and its",
        "open files; Ray's own processes are shown beside.",
        "",
        "| left behind at the end | number |",
        "|---|---|",
    ]
    lines += [f"| {kind} | {len(names)} |" for kind, names in found["left"].items()]
    different = len(found["different_weights"])
    lines += ["", f"Failed commands: {len(soak.failures)}. Trainings whose weights differ from an undisturbed one's: {different}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pause", type=float, nargs=2, default=(20.0, 60.0), help="seconds between two kills, at least and at most")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--workers", type=int, default=1, help="of each extraction, through Ray; 0: without Ray")
    parser.add_argument("--out", type=Path, help="a new folder; default: a temporary one, which is removed when nothing failed")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the kills; default: drawn, and reported")
    parser.add_argument("--json", dest="to", type=Path, default=Path("docs/results/soak.json"))
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp(prefix="eupe-soak-"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("a", "b", "throughout")):
        make_teacher(out / "teachers" / name, seed)
    soak = Soak(out, options.minutes, tuple(options.pause), options.steps, options.seed, options.workers)
    found = soak_all(soak)
    steady = soak.throughout.flatness()
    flat = soak.flatness() | {
        f"{phase}: {name}": grown for phase, rows in steady.items() for name, (_, grown) in rows.items() if name not in OF_RAY
    }
    results = {
        "soak.kills": float(len(soak.kills)), "soak.failures": float(len(soak.failures)), "soak.rounds": float(found["rounds"]),
        "soak.longest_between_kills_s": soak.longest_between_kills(),
        "soak.leaks": float(sum(map(len, found["left"].values()))), "soak.different_weights": float(len(found["different_weights"])),
        **({"soak.memory_growth": max(flat.values())} if flat else {}),
    }  # fmt: skip
    details = {
        "minutes": options.minutes, "seed": options.seed, **found, "memory_growth": flat, "throughout": steady,
        "failures": soak.failures, "kills": soak.kills, "samples": [vars(sample) for sample in soak.samples],
    }  # fmt: skip
    report(results, TARGETS, details, options.to)
    options.to.with_suffix(".md").write_text(table(soak, found, options.minutes))
    if soak.failures or results["soak.leaks"] or found["different_weights"] or (flat and max(flat.values()) > FLAT):
        raise SystemExit(f"something failed, leaked, grew or differs: see {options.to} and {out}")
    shutil.rmtree(ray_folder(out), ignore_errors=True)
    if options.out is None:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
