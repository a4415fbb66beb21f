"""An epoch in shard order from S3, against plain GETs of the same objects, interleaved (BENCHMARKS.md, bench-store).

A real server process (moto over HTTP on this machine, which answers from memory) holds one feature set of fp16 tokens, 256 × 1280 a view,
with its records compacted. Ours: every row of every shard, in shard order, by a reader of `FeatureStore.open(url)` that is open already
(what opening costs is shown beside it): records in blocks, whole-object GETs into memory, rows checked into a batch. "ours, kept" is the
same with an empty `shard_cache` folder, which a copy of every byte goes to; "ours, full cache" a second epoch from it. Raw: one GET an
object by the same client, one after another, read into one buffer and thrown away. Ours has several connections, so the same GETs on eight
are measured too (`whole_gets_at_once`): they keep server and client busy on a core each. So the same is measured once more against a server
that gives each connection what S3 does (`as_s3`; `s3_server`), where the link is the bound and not the processors. Rows in random order are
ranged reads (of one shard, times their number: the server copies the whole object for each). `cpu_seconds` is the processor time of this
process alone.

    python -m benchmarks.bench_s3 [--shards 8] [--rounds 5]
"""

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from eupe_pipeline.storage.features.features import FeatureReader, TokenRows
from eupe_pipeline.storage.objects.objects import open_objects
from eupe_pipeline.storage.objects.read_ahead import CONNECTIONS
from eupe_pipeline.storage.objects.s3_download import s3_downloader
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from fsspec import url_to_fs

from .bench_store import SHARD_ROWS, made_up_rows, make_store
from .figures import interleave, medians, report
from .s3_server import AS_S3, FAST, Link, server

URL = "s3://bench/store"
TARGETS = {
    "store.s3_read/whole_get": (">=", 0.85),
    "store.s3_read/whole_gets_at_once": (">=", 0.85),
    "store.s3_read_as_s3/whole_gets_at_once": (">=", 0.85),
}
BATCH = 64
RANGED = "ours, ranged reads"
WAYS = ("whole GETs", "whole GETs at once", "ours", "ours, kept", "ours, full cache", RANGED)
WAYS_AS_S3 = ("whole GETs at once", "ours", "ours, kept")


def fill(folder: Path, shards: int) -> FeatureReader:
    """Write the feature set here and copy it to the server."""
    import s3fs

    features = make_store(folder, shards * SHARD_ROWS)
    for shard in range(shards):
        views = features.views.commit_shard(shard, features.views.draw_shard(shard), {})
        features.commit_shard(shard, TokenRows(None, made_up_rows(SHARD_ROWS, shard), None), {}, views.digest)
    s3fs.S3FileSystem().mkdir("bench")
    copied = copy_features(FeatureStore.open(str(folder / "store")), features.key, FeatureStore.create(URL))
    for group in (copied.group, copied.views.group):
        group.compact()
    return copied


def opened(cache: Path | None, key: str) -> FeatureReader:
    """Return the set, opened by a reader that has read no shard."""
    return FeatureStore.open(URL, shard_cache=cache).features(key)


def read_epoch(features: FeatureReader) -> None:
    """Read every row in shard order."""
    batch = features.empty(BATCH)
    for start in range(0, features.rows, BATCH):
        features.read(np.arange(start, start + BATCH), batch)


def read_shuffled_shard(features: FeatureReader) -> None:
    """Read the rows of one shard in random order."""
    for rows in np.random.default_rng(0).permutation(SHARD_ROWS).reshape(-1, BATCH):
        features.read(rows)


class Measured(NamedTuple):
    """What contestants took."""

    bytes: int
    """Of all objects together."""
    seconds: dict[str, float]
    """Median by contestant."""
    cpu_seconds: dict[str, float]
    """Processor time of this process."""
    open_seconds: float


def measure(folder: Path, shards: int, rounds: int, names: Sequence[str]) -> Measured:
    """Let the named ways read the same objects of the running server by turns, after a round of warm-up."""
    features = fill(folder / "local", shards)
    objects, whole = open_objects(URL), s3_downloader(url_to_fs(URL)[0])
    keys = [f"features/{features.key}/{features.group.specs['patch'].key(shard)}" for shard in range(shards)]
    total = sum(objects.size(key) or 0 for key in keys)
    rounds_in_all = rounds + 1
    start = time.perf_counter()
    fresh = {number: opened(folder / f"cache{number}", features.key) for number in range(rounds_in_all)}
    in_memory = {number: opened(None, features.key) for number in range(rounds_in_all)}
    open_seconds = (time.perf_counter() - start) / (2 * rounds_in_all)
    connections = ThreadPoolExecutor(CONNECTIONS)
    cpu: dict[str, list[float]] = {name: [] for name in names}

    def whole_get(key: str) -> int:
        return sum(len(piece) for piece in whole.pieces(f"bench/store/{key}"))

    ways: dict[str, Callable[[int], object]] = {
        "whole GETs": lambda _: [whole_get(key) for key in keys],
        "whole GETs at once": lambda _: list(connections.map(whole_get, keys)),
        "ours": lambda number: read_epoch(in_memory[number % rounds_in_all]),
        "ours, kept": lambda number: read_epoch(fresh[number % rounds_in_all]),
        "ours, full cache": lambda _: read_epoch(opened(folder / "full", features.key)),
        RANGED: lambda _: read_shuffled_shard(opened(None, features.key)),
    }

    def tidy(number: int) -> None:
        """Remove the last round's readers and copies, and touch as much free memory as a round takes.

        A host gives a virtual machine its memory at the first touch, at 5 µs a page: not the store's cost, and paid once.
        """
        if number >= 0:
            fresh.pop((number - 1) % rounds_in_all, None)
            in_memory.pop((number - 1) % rounds_in_all, None)
            shutil.rmtree(folder / f"cache{(number - 1) % rounds_in_all}", ignore_errors=True)
        gc.collect()
        np.ones(4 * total, np.uint8)

    def clocked(name: str) -> Callable[[int], object]:
        def run(number: int) -> None:
            start = time.process_time()
            ways[name](number)
            cpu[name].append(time.process_time() - start)

        return run

    if "ours, full cache" in names:
        read_epoch(opened(folder / "full", features.key))
    seconds = medians(interleave({name: clocked(name) for name in names}, rounds, before=tidy))
    return Measured(total, seconds, medians(cpu), open_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-s3.json"))
    options = parser.parse_args()
    found: dict[Link, Measured] = {}
    for link, names in ((FAST, WAYS), (AS_S3, WAYS_AS_S3)):
        folder = Path(tempfile.mkdtemp(prefix="bench-s3-"))
        try:
            with server(link):
                found[link] = measured = measure(folder, options.shards, options.rounds, names)
        finally:
            shutil.rmtree(folder)
        measured.seconds.update({name: value * options.shards for name, value in measured.seconds.items() if name == RANGED})
        print(
            "a server as fast as it is"
            if link == FAST
            else f"{link.megabytes_per_second:.0f} MB/s a connection, {link.first_byte_ms:.0f} ms"
        )
        for name, value in measured.seconds.items():
            print(f"  {name:20} {measured.bytes / value / 1e6:8.0f} MB/s  {measured.cpu_seconds[name]:6.3f} s of this process", flush=True)
    fast, as_s3 = found[FAST].seconds, found[AS_S3].seconds
    results = {
        "store.s3_read/whole_get": fast["whole GETs"] / fast["ours"],
        "store.s3_read/whole_gets_at_once": fast["whole GETs at once"] / fast["ours"],
        "store.s3_read_as_s3/whole_gets_at_once": as_s3["whole GETs at once"] / as_s3["ours"],
        "store.s3_read_and_keep/whole_gets_at_once": fast["whole GETs at once"] / fast["ours, kept"],
        "store.s3_read_and_keep_as_s3/whole_gets_at_once": as_s3["whole GETs at once"] / as_s3["ours, kept"],
        "store.s3_read_cached/whole_get": fast["whole GETs"] / fast["ours, full cache"],
        "store.s3_read_ranged/whole_get": fast["whole GETs"] / fast[RANGED],
        "store.s3_open_seconds": found[FAST].open_seconds,
    }
    report(
        results,
        TARGETS,
        {
            "command": "python -m benchmarks.bench_s3", "bytes": found[FAST].bytes, "seconds": fast, "seconds_as_s3": as_s3,
            "cpu_seconds": found[FAST].cpu_seconds, "cpu_seconds_as_s3": found[AS_S3].cpu_seconds,
        },
        options.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
