"""One image out of a Parquet file of many row groups, against the bare reading of its bytes from an open file (BENCHMARKS.md, bench-store).

Files of 1,000 groups (images of 100 KB) and of 50,000 (20 KB, a gigabyte), one image a group, as Hugging Face's struct with a label. Ours:
`sources.read_bytes`, what the dataset calls for each image: from the URL to the bytes, the file looked at for a change. Bare: the same
group's images by pyarrow from a `ParquetFile` that stays open, which looks at nothing. "bare, one thread" is the same call without
pyarrow's threads and its buffer ahead, which an image does not need: its fastest way, and ours is built on it. `pread` of the same bytes,
which nothing decodes, and a file opened for each image are shown beside them. Each reads one random image after the other, in turns; the
medians are of 2,000 images each.

    python -m benchmarks.bench_parquet [--images 2000] [--folder DIR]
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from eupe_pipeline.storage.sources.sources import read_bytes

from .figures import medians, report

TARGETS = {f"parquet.image_ms/bare_{groups}": ("<=", 1.2) for groups in (1000, 50000)}
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
Reader = Callable[[int], bytes]


def write(path: Path, groups: int, image_bytes: int) -> None:
    """Write a file of one image a group."""
    with pq.ParquetWriter(path, SCHEMA) as file:
        for number in range(groups):
            image = {"bytes": os.urandom(image_bytes), "path": f"{number}.jpg"}
            file.write_table(pa.table({"image": [image], "label": [number % 10]}, schema=SCHEMA))


def cell(table: pa.Table) -> bytes:
    """Return the image of a group of one."""
    return bytes(table.column(0)[0].as_py()["bytes"])


def readers(path: Path) -> dict[str, Reader]:
    """Return the ways to read an image by its number."""
    default = pq.ParquetFile(path)
    one_thread = pq.ParquetFile(pa.OSFile(str(path), "rb"), metadata=default.metadata, pre_buffer=False)
    descriptor, metadata = os.open(path, os.O_RDONLY), default.metadata

    def pread(number: int) -> bytes:
        chunk = metadata.row_group(number).column(0)
        return os.pread(descriptor, chunk.total_compressed_size, chunk.dictionary_page_offset or chunk.data_page_offset)

    return {
        "ours": lambda number: read_bytes(str(path.parent), path.name, "parquet", number, 0),
        "bare": lambda number: cell(default.read_row_group(number, columns=["image.bytes"])),
        "bare, one thread": lambda number: cell(one_thread.read_row_group(number, columns=["image.bytes"], use_threads=False)),
        "opened for each": lambda number: cell(pq.ParquetFile(path).read_row_group(number, columns=["image.bytes"])),
        "pread": pread,
    }


def measure(path: Path, groups: int, images: int) -> dict[str, float]:
    """Return the median milliseconds an image of each reader."""
    random = np.random.default_rng(0)
    ways = readers(path)
    for number in random.integers(0, groups, 20).tolist():
        if ways["ours"](number) != ways["bare"](number):
            raise AssertionError(f"image {number} differs")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(images):
        for name in random.permutation([name for name in ways if name != "opened for each" or step % 100 == 0]).tolist():
            number = int(random.integers(0, groups))
            start = time.perf_counter()
            ways[name](number)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * value for name, value in medians(seconds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-parquet.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-parquet-", dir=options.folder))
    milliseconds: dict[str, dict[str, float]] = {}
    try:
        for groups, image_bytes in ((1000, 100_000), (50_000, 20_000)):
            path = folder / f"{groups}.parquet"
            write(path, groups, image_bytes)
            milliseconds[str(groups)] = measure(path, groups, options.images)
            path.unlink()
    finally:
        shutil.rmtree(folder)
    results: dict[str, float] = {}
    for groups_text, by_reader in milliseconds.items():
        for name, value in by_reader.items():
            print(f"{groups_text:>6} groups  {name:18} {value:9.4f} ms an image  {value / by_reader['bare']:9.2f} of bare")
        results[f"parquet.image_ms_{groups_text}"] = by_reader["ours"]
        for name in ("bare", "bare, one thread", "pread"):
            results[f"parquet.image_ms/{name.replace(', ', '_').replace(' ', '_')}_{groups_text}"] = by_reader["ours"] / by_reader[name]
    details = {"command": "python -m benchmarks.bench_parquet", "images": options.images, "milliseconds": milliseconds}
    report(results, TARGETS, details, options.out)


if __name__ == "__main__":
    main()
