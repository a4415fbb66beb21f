"""An epoch in shard order from S3, against plain GETs of the same objects, interleaved (BENCHMARKS.md, bench-store).

A real server process (moto over HTTP on this machine, which answers from memory) holds one feature set of fp16 tokens, 256 × 1280 a view,
with its records compacted. Ours: every row of every shard, in shard order, by a reader of `FeatureStore.open(url)` that is open already
(what opening costs is shown beside it): records in blocks, whole-object GETs into memory, rows checked into a batch. "ours, kept" is the
same with an empty `shard_cache` folder, which a copy of every byte goes to; "ours, full cache" a second epoch from it. Raw: one GET an
object by the same client, one after another, read into one buffer and thrown away. Ours has several connections, so the same GETs on eight
are measured too (`whole_gets_at_once`): they keep server and client busy on a core each. Rows in random order are ranged reads (of one
shard, times their number: the server copies the whole object for each). `cpu_seconds` is the processor time of this process alone.

    python -m benchmarks.bench_s3 [--shards 8] [--rounds 5]
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

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

URL = "s3://bench/store"
TARGETS = {"store.s3_read/whole_get": (">=", 0.85), "store.s3_read/whole_gets_at_once": (">=", 0.85)}
BATCH = 64


@contextmanager
def server() -> Iterator[None]:
    """Yield a moto server of our own, and the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made_up = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({**made_up, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def fill(folder: Path, shards: int) -> FeatureReader:
    """Write the feature set here and copy it to the server."""
    import s3fs

    features = make_store(folder, shards * SHARD_ROWS)
    for shard in range(shards):
        features.commit_shard(shard, TokenRows(None, made_up_rows(SHARD_ROWS, shard), None), {}, "")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-s3.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-s3-"))
    try:
        with server():
            features = fill(folder / "local", options.shards)
            objects = open_objects(URL)
            whole = s3_downloader(url_to_fs(URL)[0])
            keys = [f"features/{features.key}/{features.group.specs['patch'].key(shard)}" for shard in range(options.shards)]
            total = sum(objects.size(key) or 0 for key in keys)
            read_epoch(opened(folder / "full", features.key))
            start = time.perf_counter()
            fresh = [opened(folder / f"cache{number}", features.key) for number in range(options.rounds + 1)]
            in_memory = [opened(None, features.key) for _ in fresh]
            open_seconds = (time.perf_counter() - start) / (2 * len(fresh))

            def whole_get(key: str) -> int:
                return sum(len(piece) for piece in whole.pieces(f"bench/store/{key}"))

            connections = ThreadPoolExecutor(CONNECTIONS)
            contestants: dict[str, Callable[[int], object]] = {
                "whole GETs": lambda _: [whole_get(key) for key in keys],
                "whole GETs at once": lambda _: list(connections.map(whole_get, keys)),
                "ours": lambda number: read_epoch(in_memory[number]),
                "ours, kept": lambda number: read_epoch(fresh[number]),
                "ours, full cache": lambda _: read_epoch(opened(folder / "full", features.key)),
                "ours, ranged reads": lambda _: read_shuffled_shard(opened(None, features.key)),
            }

            def tidy(number: int) -> None:
                """Remove the last round's copies, and touch as much free memory as a round takes.

                A host gives a virtual machine its memory at the first touch, at 5 µs a page: not the store's cost, and paid once.
                """
                if number >= 0:
                    for shard in range(options.shards):
                        fresh[number - 1].group.forget(shard)
                        in_memory[number - 1].group.forget(shard)
                    shutil.rmtree(folder / f"cache{(number - 1) % len(fresh)}")
                np.ones(2 * total, np.uint8)

            cpu: dict[str, list[float]] = {name: [] for name in contestants}

            def clocked(name: str, contestant: Callable[[int], object]) -> Callable[[int], object]:
                def run(number: int) -> None:
                    start = time.process_time()
                    contestant(number)
                    cpu[name].append(time.process_time() - start)

                return run

            timed = {name: clocked(name, contestant) for name, contestant in contestants.items()}
            seconds = medians(interleave(timed, options.rounds, before=tidy))
            seconds["ours, ranged reads"] *= options.shards
    finally:
        shutil.rmtree(folder)
    for name, value in seconds.items():
        ratio = seconds["whole GETs"] / value
        print(f"{name:20} {total / value / 1e6:8.0f} MB/s  {ratio:6.3f} of whole GETs  {np.median(cpu[name]):6.3f} s of this process")
    results = {
        "store.s3_read/whole_get": seconds["whole GETs"] / seconds["ours"],
        "store.s3_read/whole_gets_at_once": seconds["whole GETs at once"] / seconds["ours"],
        "store.s3_read_and_keep/whole_gets_at_once": seconds["whole GETs at once"] / seconds["ours, kept"],
        "store.s3_read_cached/whole_get": seconds["whole GETs"] / seconds["ours, full cache"],
        "store.s3_read_ranged/whole_get": seconds["whole GETs"] / seconds["ours, ranged reads"],
        "store.s3_open_seconds": open_seconds,
    }
    report(
        results,
        TARGETS,
        {"command": "python -m benchmarks.bench_s3", "bytes": total, "seconds": seconds, "cpu_seconds": medians(cpu)},
        options.out,
    )


if __name__ == "__main__":
    main()
