"""Extraction against a bare forward loop of the same teacher, and what five kills cost (BENCHMARKS.md, bench-extract).

The teacher has ViT-B's shape (random weights) at 128 px. Bare: the loaded teacher over uint8 batches that are already in memory, results
dropped. Ours: `extract-features --workers 0` from JPEG files to committed int8 shards, from its first missing shard to its last commit;
loading and statistics are in neither. Both on one torch thread, rounds interleaved. Our decoding, encoding and writing run on further
threads, as they do for a user; `--pin` puts everything on one core, where nothing can hide behind the forward. On a machine that others
use, wall times say little: processor seconds of all our threads over the bare loop's are given as well.

Total: the whole command (Python's start, imports, plan, the teacher's start, canary, statistics with the default sample, every commit) over
2,000 photos, against the bare loop over as many views.

Scaling: the same photos by one Ray actor and by two, of one thread each, with the actors' memory and their shares of time.

Kills: the whole command is killed with SIGKILL at five random moments and started again; over the wall time of an undisturbed run, starts
included on both sides. A kill costs a start and half of a shard, whatever the run's length, so the ratio is of a run over 60,000 images (as
many as CIFAR-10 has; nine minutes on two cores), and the seconds of one kill are a figure of their own, which any length gives.

    python -m benchmarks.bench_extract [--views 96] [--rounds 5] [--total-images 2000] [--kill-images 60000] [--pin]
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from PIL import Image

from .figures import report

SIZE_PX, BATCH = 128, 16
TARGETS = {"extract.rate/bare_forward": (">=", 0.95), "extract.total/bare_forward": (">=", 0.9), "extract.kill_overhead": ("<=", 1.1)}
SCRIPT = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"


def make_photos(folder: Path, count: int, size_hw: tuple[int, int]) -> None:
    """Return JPEG files with structure at several scales, so that they decode as slowly as photos do."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    coarse = random.integers(0, 255, (count, 12, 16, 3), np.uint8)
    for number in range(count):
        image = Image.fromarray(coarse[number]).resize(size_hw[::-1], Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(image, np.int16) + random.integers(-12, 12, (*size_hw, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06d}.jpg", quality=90)


def make_run(folder: Path, architecture: str | dict[str, Any], size_px: int) -> Path:
    """Return a run folder with a random encoder, which serves as teacher."""
    torch.manual_seed(0)
    student = Student(build_encoder(architecture), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, folder / "model", size_px=size_px, targets={})
    return folder


def extraction(store: FeatureStore, run: Path, views: int) -> Callable[[int], dict[str, Any]]:
    """Extract `views` fresh views (the round's number is their seed); returns seconds from the first shard on, and the summary."""

    def go(number: int) -> dict[str, Any]:
        last: dict[str, Any] = {}
        used = [0.0]

        def listen(event: dict[str, Any]) -> None:
            if event["stage"] == "statistics":
                used[0] = time.process_time()
            last.update(event)

        options = ExtractOptions(
            store.url,
            "photos",
            (TeacherRequest(str(run)),),
            ViewSpec(seed=1000 + number),
            32,
            "int8",
            statistics_batches=1,
            batch_size=BATCH,
            workers=0,
        )
        summary = extract_features(options, listen)
        seconds, cpu = summary["views_done"] / last["rate"], time.process_time() - used[0]
        return {"seconds": seconds, "cpu_seconds": cpu, "views": summary["views_done"], **summary["worker_seconds"]}

    return go


def bare_forward(run: Path, views: int, batch: int = BATCH) -> Callable[[int], dict[str, Any]]:
    """Run the teacher over as many views, rendered beforehand."""
    teacher = load_teacher(resolve_teacher(str(run)))
    pixels = torch.from_numpy(canary_images(views, SIZE_PX))
    batches = [pixels[start : start + batch] for start in range(0, views, batch)]

    def go(number: int) -> dict[str, Any]:
        start, used = time.perf_counter(), time.process_time()
        for batch in batches:
            teacher(batch)
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used, "views": views}

    return go


def compare_rates(folder: Path, views: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Time interleaved rounds of both, one of warm-up each."""
    make_photos(folder / "photos", views, (375, 500))
    store = FeatureStore.create(str(folder / "store"))
    build_index(store.objects, str(folder / "photos"), "photos")
    run = make_run(folder / "vit-b", "eupe_vitb16", SIZE_PX)
    contestants = {"bare": bare_forward(run, views), "extract": extraction(store, run, views)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    random = np.random.default_rng(0)
    for number in range(-1, rounds):
        for name in random.permutation(list(contestants)).tolist():
            result = contestants[name](number)
            if number >= 0:
                found[name].append(result)
    return found


def compare_totals(folder: Path, images: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Time whole commands, each between two halves of a bare loop over as many views: a machine that gets slower meets both.

    Needs the teacher that `compare_rates` has left in the folder.
    """
    make_photos(folder / "many", images, (375, 500))
    store = FeatureStore.create(str(folder / "store-many"))
    build_index(store.objects, str(folder / "many"), "many")
    half = bare_forward(folder / "vit-b", images // 2, ExtractOptions.batch_size or BATCH)
    words = ["extract-features", "--store", store.url, "--data", "many", "--teacher", str(folder / "vit-b"), "--workers", "0"]
    found: dict[str, list[dict[str, Any]]] = {"bare": [], "whole": []}
    for number in range(rounds):
        halves = [half(number)]
        start, used = time.perf_counter(), child_seconds()
        run_command([*words, "--seed", str(2000 + number)])
        found["whole"].append({"seconds": time.perf_counter() - start, "cpu_seconds": child_seconds() - used, "views": images})
        halves.append(half(number))
        found["bare"].append({name: sum(one[name] for one in halves) for name in halves[0]})
    return found


def child_seconds() -> float:
    """Return processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def scaling(folder: Path, counts: tuple[int, ...] = (1, 2)) -> dict[str, dict[str, Any]]:
    """Extract by one Ray actor and by two, one thread each: views a second of the computing, shares of time, actors' memory.

    Needs what `compare_rates` has left in the folder.
    """
    found = {}
    for count in counts:
        store = FeatureStore.create(str(folder / f"store-{count}"))
        build_index(store.objects, str(folder / "photos"), "photos")
        request = (TeacherRequest(str(folder / "vit-b")),)
        options = ExtractOptions(store.url, "photos", request, ViewSpec(), 8, "int8", statistics_batches=4, batch_size=8, workers=count)
        largest = [0.0]

        def look(event: dict[str, Any], largest: list[float] = largest) -> None:
            largest[0] = max(largest[0], actors_megabytes())

        summary = extract_features(options, look)
        facts = {name: summary[name] for name in ("views_per_second", "shares_of_time", "seconds")}
        found[f"{count} workers"] = {**facts, "actors_megabytes": largest[0]}
    return found


def actors_megabytes() -> float:
    """Return resident memory of the extracting actors of this machine, together."""
    total = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def run_command(arguments: list[str], kill_after_s: float | None = None) -> bool:
    """Start the command line once, and kill it after so many seconds; returns True when it ended by itself."""
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        status = child.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return False
    if status:
        raise SystemExit(f"the command failed with status {status}: {' '.join(arguments)}")
    return True


def kill_overhead(folder: Path, images: int, kills: int) -> dict[str, Any]:
    """Return the wall time of an undisturbed extraction, and of one killed `kills` times at random moments, fewer when it ends too soon."""
    make_photos(folder / "small", images, (32, 32))
    run = make_run(folder / "small-teacher", {"name": "vit-mini", "width": 192, "depth": 6}, 64)
    seconds: dict[str, float] = {}
    killed = 0
    for name in ("undisturbed", "killed"):
        store = folder / name
        build_index(FeatureStore.create(str(store)).objects, str(folder / "small"), "small")
        arguments = ["extract-features", "--store", str(store), "--data", "small", "--teacher", str(run), "--workers", "0"]
        arguments += ["--statistics-batches", "10"]
        start = time.perf_counter()
        if name == "killed":
            moments = np.sort(np.random.default_rng(1).uniform(0, 0.9, kills)) * seconds["undisturbed"]
            for lasts_s in np.diff(moments, prepend=0.0).tolist():
                if run_command(arguments, lasts_s):
                    break
                killed += 1
        run_command(arguments)
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds, "kills": killed, "images": images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--views", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total-images", type=int, default=2000, help="0 leaves the whole extraction out")
    parser.add_argument("--total-rounds", type=int, default=1)
    parser.add_argument("--kill-images", type=int, default=60_000, help="0 leaves the kills out")
    parser.add_argument("--no-scaling", dest="scaling", action="store_false", help="leave out one worker against two")
    parser.add_argument("--pin", action="store_true", help="run everything on one core")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-extract.json"))
    options = parser.parse_args()
    if options.pin:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare_rates(Path(temporary), options.views, options.rounds)
        rates = {name: [row["views"] / row["seconds"] for row in found] for name, found in rows.items()}
        results = {"extract.rate/bare_forward": float(np.median(np.array(rates["extract"]) / np.array(rates["bare"])))}
        cpu = {name: float(np.median([row["cpu_seconds"] for row in found])) for name, found in rows.items()}
        results["extract.cpu_rate/bare_forward"] = cpu["bare"] / cpu["extract"]  # every thread counted: what no overlap can hide
        results["extract.forward_share_of_time"] = float(np.median([row["forward"] / row["seconds"] for row in rows["extract"]]))
        details: dict[str, Any] = {"views_per_s": rates, "rows": rows, "pinned_to_one_core": options.pin}
        details["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of this process: both loops
        if options.total_images:
            details["total"] = totals = compare_totals(Path(temporary), options.total_images, options.total_rounds)
            for figure, kind in (("extract.total/bare_forward", "seconds"), ("extract.total_cpu/bare_forward", "cpu_seconds")):
                pairs = zip(totals["bare"], totals["whole"], strict=True)
                results[figure] = float(np.median([bare[kind] / whole[kind] for bare, whole in pairs]))
        if options.scaling:
            details["scaling"] = scaling(Path(temporary))
            one, two = (details["scaling"][f"{count} workers"]["views_per_second"] for count in (1, 2))
            results["extract.rate_2_workers/1_worker"] = two / one
        if options.kill_images:
            details["kills"] = kill_overhead(Path(temporary), options.kill_images, kills=5)
            seconds = details["kills"]["seconds"]
            results["extract.kill_overhead"] = seconds["killed"] / seconds["undisturbed"]
            results["extract.seconds_per_kill"] = (seconds["killed"] - seconds["undisturbed"]) / max(1, details["kills"]["kills"])
        report(results, TARGETS, details, options.out)


if __name__ == "__main__":
    main()
