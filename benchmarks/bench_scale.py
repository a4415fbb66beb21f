"""Opening and planning at 1.7e9 images × 2 views, and the cost of a row as the number of shards grows a thousandfold.

The large set is simulated: its identities and 26 ledgers are real files in the real format, for 1.65 million shards of 1,030 images; the
records inside are placeholders, because opening and planning read none of them (real ones would take 77 GB for 1.3 PB of tokens). The
cost of a row is measured on sets of 1,000 and 1,000,000 shards of which as many hold real rows, each read once, in random order, by a
reader that has no shard open yet: record from the ledger, open, index, row.

    python -m benchmarks.bench_scale [--rounds 5]
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from eupe_pipeline.storage.core.identity import short
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.images.dataset import PART_IMAGES, ImageDataset, dataset_digest, pack_description
from eupe_pipeline.storage.objects.objects import LocalObjects, Objects
from eupe_pipeline.storage.shards.commit import ObjectRecord, Record
from eupe_pipeline.storage.shards.ledger import LEDGER_SHARDS, Ledgers
from eupe_pipeline.storage.shards.shards import ShardedGroup
from eupe_pipeline.storage.shards.zarr_format import ArraySpec, build_shard
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec

from .figures import medians, report

IMAGES, IMAGES_PER_SHARD = 1_700_000_000, 1_030
ROWS_READ, ROW_ROUNDS = 1000, 3  # a pass takes a third of a second, so more of them than of openings
TARGETS = {"scale.open_seconds": ("<", 10.0), "scale.open_megabytes": ("<", 1000.0), "scale.row_cost_1e6/1e3": ("<=", 1.1)}


def huge_dataset(store: FeatureStore) -> ImageDataset:
    """Return a dataset of 1.7e9 images whose index parts are never touched."""
    content = "0" * 64
    full = dataset_digest(content, [])
    parts = ["0" * 64] * -(-IMAGES // PART_IMAGES)
    described = {"kind": "dataset", "digest": full, "source": "s3://nowhere", "images": IMAGES, "labels": [], "skipped": {}}
    key = f"lvd@{short(full)}"
    store.objects.create(
        f"datasets/{key}/identity.json", [pack_description({**described, "content_sha256": content, "index_sha256": parts})]
    )
    return store.dataset(key)


def write_ledgers(objects: Objects, prefix: str, shards: int, real: dict[int, bytes]) -> None:
    """Write ledgers for all shards: the real records where there are some, placeholders elsewhere."""
    ledgers = Ledgers(objects, prefix, shards)
    for number in range(-(-shards // LEDGER_SHARDS)):
        first, last = ledgers.span(number)
        records = [real.get(shard, b"placeholder") for shard in range(first, last)]
        ledgers.publish(number, records, [1 << 30] * (last - first), [0] * (last - first))


def make_huge(folder: Path) -> str:
    """Return the simulated set; returns its key."""
    store = FeatureStore.create(str(folder))
    views = ViewSet.create(store.objects, huge_dataset(store), ViewSpec(views_per_image=2), IMAGES_PER_SHARD)
    ones = np.ones(1280, np.float32)
    statistics = Statistics(ones, ones, ones, ones, 1)
    identity = features_identity({"architecture": "none"}, views, statistics, {}, FeatureLayout(1280, 1280, (16, 16), "int8"))
    features = FeatureReader.create(store.objects, "huge", views, identity, statistics)
    write_ledgers(store.objects, f"features/{features.key}", features.shards, {})
    return features.key


def open_and_plan(url: str, key: str) -> None:
    """Do what a run does first, in a process of its own; prints seconds and peak megabytes beyond the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    features = FeatureStore.open(url).features(key)
    missing, size, failed = features.missing_shards(), features.stored_bytes(), features.failed_rows()
    assert (len(missing), len(failed)) == (0, 0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"seconds": seconds, "megabytes": peak / 1024, "added": (peak - before) / 1024, "shards": features.shards, "bytes": size}
        )
    )


def sparse_group(folder: Path, shards: int) -> tuple[ShardedGroup, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return a group of `shards` one-row shards of which ROWS_READ exist, with all records in ledgers; and the rows that exist."""
    spec = ArraySpec("patch", (shards, 64, 64), np.dtype(np.float16), 1, 1, ("view", "token", "channel"))
    objects, group_digest = LocalObjects(folder), "0" * 64
    chosen = np.sort(np.random.default_rng(0).choice(shards, ROWS_READ, replace=False)).astype(np.int64)
    row, real = np.ones((1, 64, 64), np.float16), {}
    for shard in chosen.tolist():
        built = build_shard(spec, row, np.ones(1, np.bool_))
        path = folder / "set" / spec.key(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(built))
        entry = ObjectRecord.of(spec.key(shard), built.size, built.hashes())
        real[shard] = Record(group_digest, shard, 1, "0" * 64, {"patch": entry}).to_bytes()
    write_ledgers(objects, "set", shards, real)
    return ShardedGroup(objects, "set", group_digest, [spec]), chosen


def row_costs(folder: Path, rounds: int) -> dict[str, float]:
    """Return median seconds of ROWS_READ first reads, by number of shards."""
    groups = {name: sparse_group(folder / name, int(float(name))) for name in ("1e3", "1e6")}
    out = np.empty((1, 64, 64), np.float16)

    def read_all(name: str) -> float:
        group, rows = groups[name]
        fresh = ShardedGroup(group.objects, group.prefix, group.group_digest, list(group.specs.values()))
        fresh.ledgers.totals()  # a part of opening, and measured there
        start = time.perf_counter()
        for row in np.random.default_rng(1).permutation(rows):
            fresh.read(np.array([row]), ["patch"], {"patch": out})
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {name: [] for name in groups}
    for number in range(ROW_ROUNDS * rounds + 1):
        for name in sorted(groups, reverse=number % 2 == 1):
            seconds[name].append(read_all(name))
    return medians({name: values[1:] for name, values in seconds.items()})


def opened_in_a_process(url: str, key: str) -> dict[str, float]:
    """Return what `open_and_plan` printed; shows what a child that failed said."""
    command = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.bench_scale", "--open", url, key]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--open", nargs=2, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-scale.json"))
    options = parser.parse_args()
    if options.open:
        open_and_plan(*options.open)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        key = make_huge(folder / "huge")
        opened = [opened_in_a_process(str(folder / "huge"), key) for _ in range(options.rounds)]
        costs = row_costs(folder, options.rounds)
    finally:
        shutil.rmtree(folder)
    results = {
        "scale.open_seconds": float(np.median([one["seconds"] for one in opened])),
        "scale.open_megabytes": float(np.median([one["megabytes"] for one in opened])),
        "scale.row_cost_1e6/1e3": costs["1e6"] / costs["1e3"],
    }
    report(results, TARGETS, {"command": "python -m benchmarks.bench_scale", "opened": opened, "row_costs_s": costs}, options.out)


if __name__ == "__main__":
    main()
