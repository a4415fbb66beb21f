"""The feature store against raw system calls and against its peers, on the same rows and bytes, interleaved (BENCHMARKS.md, bench-store).

Reading: 256 random rows of 256 × 1280 fp16 (655,360 bytes each) into one preallocated batch. Raw is `preadv` row by row of the same bytes
in the same files on one thread, and is compared with our reader on one thread; "raw, one file" has them in one file without checksums
between, which this kernel's page cache copies a tenth faster. Peers are read as their users read them, and are compared with what our
reader does by itself: as many threads as pay. Warm: everything in the page cache. Cold: the cache of the files is dropped before each read.

Writing: three shards of 128 rows one after another through `FeatureReader.commit_shard`, which is what extraction calls: checked,
checksummed, hashed, and a commit record each (two files, four fsyncs a shard). Raw is one file a shard: `write` of the same token bytes,
`fsync`, through the page cache as every peer does it. "raw direct" is the same with O_DIRECT from page-aligned memory, one call a file.

The peers that this environment has are measured in the same rounds. LMDB and Arrow copy out of a memory map and check nothing; a broken
disk there is a bus error that ends the process, which is why we do not.

    python -m benchmarks.bench_store [--rows 1024] [--rounds 7] [--folder DIR] [--no-peers]
"""

import argparse
import io
import mmap
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from eupe_pipeline.storage.core.checksums import byte_view
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, TokenRows, features_identity
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.shards.zarr_format import CRC_BYTES
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from numpy.typing import NDArray
from PIL import Image

from .figures import interleave, medians, report
from .store_peers import available, synced

GRID, DIM, SHARD_ROWS, BATCH = (16, 16), 1280, 128, 256
STREAM, PAUSE_S = 3, 1.0
ROW_BYTES = GRID[0] * GRID[1] * DIM * 2
TARGETS = {
    "store.read_checked/raw": (">=", 0.75),
    "store.read_unchecked/raw": (">=", 0.85),
    "store.read_checked/best_peer": (">=", 1.0),
    "store.write/raw_fsync": (">=", 0.9),
}
Rows = NDArray[np.float16]


def made_up_rows(count: int, shard: int = 0) -> Rows:
    """Return normal tokens; the channels are rolled from shard to shard so that no two rows are equal."""
    base = np.random.default_rng(0).normal(size=(SHARD_ROWS, *GRID, DIM)).astype(np.float16)
    return np.concatenate([np.roll(base, shard + n, axis=3) for n in range(-(-count // SHARD_ROWS))])[:count]


def make_store(folder: Path, images: int) -> FeatureReader:
    """Return an empty fp16 feature set over `images` tiny images, one view each."""
    (folder / "source").mkdir(parents=True)
    with tarfile.open(folder / "source/a.tar", "w") as archive:
        for number in range(images):
            buffer = io.BytesIO()
            Image.new("RGB", (4, 4), (number % 256, number // 256 % 256, 0)).save(buffer, "BMP")
            member = tarfile.TarInfo(f"{number:08d}.bmp")
            member.size = len(buffer.getvalue())
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    store = FeatureStore.create(str(folder / "store"))
    dataset = build_index(store.objects, str(folder / "source"), "bench")
    views = ViewSet.create(store.objects, dataset, ViewSpec(), SHARD_ROWS)
    ones = np.ones(DIM, np.float32)
    statistics = Statistics(None, None, ones, ones, 1)
    identity = features_identity({"architecture": "none"}, views, statistics, {}, FeatureLayout(None, DIM, GRID, "fp16"))
    return FeatureReader.create(store.objects, "bench", views, identity, statistics)


def write_raw(path: Path, rows: Rows) -> None:
    """Write the same bytes: one file, one fsync."""
    with path.open("wb", buffering=0) as file:
        view = byte_view(rows)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def write_raw_direct(path: Path, aligned: memoryview) -> None:
    """Write the same past the page cache; `aligned` begins at a page and ends at one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    done = 0
    while done < len(aligned):
        done += os.pwritev(descriptor, [aligned[done:]], done)
    os.fsync(descriptor)
    os.close(descriptor)


def page_aligned(rows: Rows) -> memoryview:
    """Return a copy of the rows that O_DIRECT takes."""
    memory = memoryview(mmap.mmap(-1, rows.nbytes))
    memory[:] = byte_view(rows)
    return memory


def raw_reader(paths: list[Path], rows_each: int, row_bytes: int, out: Rows) -> Callable[[NDArray[np.int64]], None]:
    """Return a reader that calls `preadv` row by row, from files of `rows_each` rows that lie `row_bytes` apart."""
    descriptors, memory = [os.open(path, os.O_RDONLY) for path in paths], byte_view(out)

    def read(rows: NDArray[np.int64]) -> None:
        for place, row in enumerate(rows.tolist()):
            file, within = divmod(row, rows_each)
            os.preadv(descriptors[file], [memory[place * ROW_BYTES : (place + 1) * ROW_BYTES]], within * row_bytes)

    return read


def drop_cache(folder: Path) -> None:
    """Take every file below a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def reread(folder: Path) -> None:
    """Have every file in the page cache from the disk, as in a second epoch.

    Pages that were just written are larger on this kernel and copied twice as fast; files that were written past the cache have none.
    """
    os.sync()
    drop_cache(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def remove_shards(features: FeatureReader) -> None:
    """Take a set's shards away, without ceremony."""
    folder = Path(features.views.group.objects.url, "features", features.key)
    shutil.rmtree(folder / "commits", ignore_errors=True)
    for path in (folder / "patch").glob("c.*"):
        path.unlink()
    for shard in range(features.shards):
        features.group.forget(shard)


def bench_writing(folder: Path, rounds: int, with_peers: bool) -> dict[str, float]:
    """Return median seconds to make a shard of 128 rows durable, by writer; all but the peers write STREAM shards one after another."""
    features = make_store(folder / "ours", STREAM * SHARD_ROWS)
    rows = made_up_rows(SHARD_ROWS)
    tokens, aligned = TokenRows(None, rows, None), page_aligned(rows)
    files = [folder / f"raw{n}" for n in range(STREAM)]

    # Each removes what it wrote the round before, as the peers do: blocks that a disk has given out once are faster the second time.
    def raw(write: Callable[[Path], None]) -> None:
        for file in files:
            file.unlink(missing_ok=True)
        for file in files:
            write(file)

    def ours() -> None:
        remove_shards(features)
        for n in range(STREAM):
            features.commit_shard(n, tokens, {}, "")

    contestants: dict[str, Callable[[int], object]] = {
        "raw": lambda _: raw(lambda file: write_raw(file, rows)),
        "raw direct": lambda _: raw(lambda file: write_raw_direct(file, aligned)),
        "ours": lambda _: ours(),
    }
    peers, _ = available(folder / "peers") if with_peers else ({}, {})
    (folder / "peers").mkdir()
    for name, peer in peers.items():
        contestants[name] = lambda _, peer=peer: synced(peer.write, rows, peer.folder)  # type: ignore[misc]
    seconds = medians(interleave(contestants, rounds, pause_s=PAUSE_S))
    return {name: value / (STREAM if name in ("raw", "raw direct", "ours") else 1) for name, value in seconds.items()}


def bench_reading(folder: Path, rows_count: int, rounds: int, with_peers: bool, cold: bool) -> dict[str, float]:
    """Return median seconds of 256 random rows, by reader."""
    out = np.empty((BATCH, *GRID, DIM), np.float16)
    features = FeatureStore.open(str(folder / "ours/store")).features("bench")
    batch = TokenRows(None, out, None)
    shards = [Path(features.views.group.objects.url, "features", features.key, f"patch/c.{n}.0.0.0") for n in range(features.shards)]
    readers: dict[str, Callable[[NDArray[np.int64]], object]] = {
        "raw": raw_reader(shards, SHARD_ROWS, ROW_BYTES + CRC_BYTES, out),
        "raw, one file": raw_reader([folder / "raw"], rows_count, ROW_BYTES, out),
        "ours": lambda rows: features.read(rows, batch),
        "ours checked": lambda rows: features.read(rows, batch, threads=1),
        "ours unchecked": lambda rows: features.read(rows, batch, check=False, threads=1),
    }
    peers, _ = available(folder / "peers") if with_peers else ({}, {})
    for name, peer in peers.items():
        peer.open((rows_count, *GRID, DIM))
        readers[name] = lambda rows, peer=peer: peer.read(rows, out)  # type: ignore[misc]
    random, truth = np.random.default_rng(1), np.memmap(folder / "raw", np.float16, "r").reshape(-1, *GRID, DIM)
    batches = [random.integers(0, rows_count, BATCH) for _ in range(rounds + 1)]
    for name, read in readers.items():
        read(batches[0])
        if name != "webdataset" and not np.array_equal(out, truth[batches[0]]):
            raise AssertionError(f"{name} gave other rows")
    del truth  # a mapped file would stay in the page cache

    def contestant(read: Callable[[NDArray[np.int64]], object]) -> Callable[[int], object]:
        return lambda number: read(batches[number])

    if not cold:
        return medians(interleave({name: contestant(read) for name, read in readers.items()}, rounds))
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, read in readers.items():
            drop_cache(folder)
            start = time.perf_counter()
            read(batches[number])
            seconds[name].append(time.perf_counter() - start)
    return medians(seconds)


def fill(folder: Path, rows_count: int, with_peers: bool) -> dict[str, str]:
    """Write the same rows in every form; returns why some peers are absent."""
    rows = made_up_rows(rows_count)
    features = make_store(folder / "ours", rows_count)
    write_raw(folder / "raw", rows)
    for shard in range(features.shards):
        first, last = features.group.shard_span(shard)
        features.commit_shard(shard, TokenRows(None, rows[first:last], None), {}, "")
    (folder / "peers").mkdir()
    peers, absent = available(folder / "peers") if with_peers else ({}, {})
    for name, peer in peers.items():
        start = time.perf_counter()
        peer.write(rows)
        print(f"wrote {name} in {time.perf_counter() - start:.1f} s", flush=True)
    reread(folder)
    return absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-store.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-store-", dir=options.folder))
    with_peers = not options.no_peers
    try:
        (folder / "read").mkdir()
        (folder / "write").mkdir()
        absent = fill(folder / "read", options.rows, with_peers)
        warm = bench_reading(folder / "read", options.rows, options.rounds, with_peers, cold=False)
        cold = bench_reading(folder / "read", options.rows, max(5, options.rounds // 2), False, cold=True)
        writing = bench_writing(folder / "write", options.rounds, with_peers)
    finally:
        shutil.rmtree(folder)
    for title, seconds, size in (("read warm", warm, BATCH), ("read cold", cold, BATCH), ("write", writing, SHARD_ROWS)):
        for name, value in sorted(seconds.items(), key=lambda item: item[1]):
            print(f"{title:10} {name:16} {size * ROW_BYTES / value / 1e9:7.2f} GB/s  {seconds['raw'] / value:6.3f} of raw")
    others = {name: value for name, value in warm.items() if not name.startswith(("raw", "ours"))}
    results = {
        "store.read_checked/raw": warm["raw"] / warm["ours checked"],
        "store.read_unchecked/raw": warm["raw"] / warm["ours unchecked"],
        "store.read_checked_cold/raw": cold["raw"] / cold["ours checked"],
        "store.write/raw_fsync": writing["raw"] / writing["ours"],
        "store.write/raw_direct_fsync": writing["raw direct"] / writing["ours"],
    }
    if others:
        results["store.read_checked/best_peer"] = min(others.values()) / warm["ours"]
        results["store.read_checked_one_thread/best_peer"] = min(others.values()) / warm["ours checked"]
        checking = [value for name, value in others.items() if name in ("zarr-python", "tensorstore")]
        results["store.read_checked/best_checking_peer"] = min(checking) / warm["ours"]
    details = {"command": "python -m benchmarks.bench_store", "rows": options.rows, "rounds": options.rounds, "absent_peers": absent}
    report(results, TARGETS, {**details, "seconds": {"warm": warm, "cold": cold, "write": writing}}, options.out)


if __name__ == "__main__":
    main()
