"""Other ways to keep the same rows on disk, each through the fastest interface that it has for random rows.

Every peer writes N rows of equal size and reads any rows of them into a given batch; each hands over the same bytes. What each checks on
the way is stated, because a checksum is work. A peer that cannot be imported is named as absent and left out.
"""

import importlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float16]
Indexes = NDArray[np.int64]


class Peer:
    """One way to store rows (n, …) fp16; `checks` says what a read verifies, `order` whether rows come in any order or shard order."""

    module: ClassVar[str]
    checks: ClassVar[str] = "nothing"
    order: ClassVar[str] = "random"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library: Any = importlib.import_module(self.module)

    def write(self, rows: Rows) -> None:
        """Store all rows; what the library leaves unsynced is fsynced by the caller."""
        raise NotImplementedError

    def open(self, shape: tuple[int, ...]) -> None:
        """Prepare reading rows of an array of this shape."""

    def read(self, indexes: Indexes, out: Rows) -> None:
        """Fill `out` with the rows of these indexes."""
        raise NotImplementedError


class Zarr(Peer):
    """zarr-python, sharded v3, row by row (its `oindex` is slower still)."""

    module, checks = "zarr", "crc32c"

    def write(self, rows: Rows) -> None:
        array = self.library.create_array(
            str(self.folder),
            shape=rows.shape,
            dtype="float16",
            chunks=(1, *rows.shape[1:]),
            shards=(128, *rows.shape[1:]),
            compressors=None,
        )
        array[:] = rows

    def open(self, shape: tuple[int, ...]) -> None:
        self.array = self.library.open_array(str(self.folder), mode="r")

    def read(self, indexes: Indexes, out: Rows) -> None:
        for place, row in enumerate(indexes.tolist()):
            out[place] = self.array[row]


class TensorStore(Peer):
    """tensorstore on a sharded Zarr v3 array, all rows in one request."""

    module, checks = "tensorstore", "crc32c"

    def _open(self, shape: tuple[int, ...], **more: Any) -> Any:
        inner = {"chunk_shape": [1, *shape[1:]], "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]}
        metadata = {
            "shape": list(shape),
            "data_type": "float16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [128, *shape[1:]]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        }
        kvstore = {"driver": "file", "path": str(self.folder)}
        return self.library.open({"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, **more}).result()

    def write(self, rows: Rows) -> None:
        self._open(rows.shape, create=True)[:].write(rows).result()

    def open(self, shape: tuple[int, ...]) -> None:
        self.array = self._open(shape, open=True)

    def read(self, indexes: Indexes, out: Rows) -> None:
        out[:] = self.array[indexes].read().result()


class Lmdb(Peer):
    """LMDB, one value a row, copied out of its memory map."""

    module = "lmdb"

    def write(self, rows: Rows) -> None:
        with self.library.open(str(self.folder), map_size=4 * rows.nbytes) as environment, environment.begin(write=True) as transaction:
            for number, row in enumerate(rows):
                transaction.put(number.to_bytes(8, "big"), row.tobytes())

    def open(self, shape: tuple[int, ...]) -> None:
        environment = self.library.open(str(self.folder), readonly=True, lock=False, map_size=1 << 40)
        self.transaction = environment.begin(buffers=True)
        self.shape = shape[1:]

    def read(self, indexes: Indexes, out: Rows) -> None:
        for place, row in enumerate(indexes.tolist()):
            out[place] = np.frombuffer(self.transaction.get(row.to_bytes(8, "big")), np.float16).reshape(self.shape)


class Arrow(Peer):
    """Arrow IPC file, mapped into memory, one fixed-size binary a row."""

    module = "pyarrow"

    def write(self, rows: Rows) -> None:
        kind = self.library.binary(rows[0].nbytes)
        self.folder.mkdir()
        with self.library.ipc.new_file(str(self.folder / "rows.arrow"), self.library.schema([("row", kind)])) as writer:
            for start in range(0, len(rows), 128):
                cells = self.library.array([row.tobytes() for row in rows[start : start + 128]], kind)
                writer.write_batch(self.library.record_batch([cells], names=["row"]))

    def open(self, shape: tuple[int, ...]) -> None:
        file = self.library.memory_map(str(self.folder / "rows.arrow"))
        self.column = self.library.ipc.open_file(file).read_all().column(0)
        self.shape = shape[1:]

    def read(self, indexes: Indexes, out: Rows) -> None:
        for place, row in enumerate(indexes.tolist()):
            out[place] = np.frombuffer(self.column[row].as_buffer(), np.float16).reshape(self.shape)


class Lance(Peer):
    """Lance, `take` of all rows at once."""

    module = "lance"

    def write(self, rows: Rows) -> None:
        import pyarrow as pa

        kind = pa.binary(rows[0].nbytes)
        batches = (
            pa.record_batch([pa.array([row.tobytes() for row in rows[start : start + 128]], kind)], names=["row"])
            for start in range(0, len(rows), 128)
        )
        self.library.write_dataset(pa.RecordBatchReader.from_batches(pa.schema([("row", kind)]), batches), str(self.folder))

    def open(self, shape: tuple[int, ...]) -> None:
        self.dataset = self.library.dataset(str(self.folder))
        self.shape = shape[1:]

    def read(self, indexes: Indexes, out: Rows) -> None:
        column = self.dataset.take(indexes.tolist()).column(0)
        for place in range(len(indexes)):
            out[place] = np.frombuffer(column[place].as_buffer(), np.float16).reshape(self.shape)


class LitData(Peer):
    """LitData, `StreamingDataset[row]` on local chunks of 128 rows."""

    module = "litdata"

    def write(self, rows: Rows) -> None:
        from litdata.streaming.writer import BinaryWriter  # type: ignore[import-not-found,unused-ignore]

        writer = BinaryWriter(str(self.folder), chunk_size=128)
        for number, row in enumerate(rows):
            writer[number] = row
        writer.done()
        writer.merge(1)

    def open(self, shape: tuple[int, ...]) -> None:
        self.dataset = self.library.StreamingDataset(str(self.folder), shuffle=False)

    def read(self, indexes: Indexes, out: Rows) -> None:
        for place, row in enumerate(indexes.tolist()):
            out[place] = self.dataset[row]


class Mds(Peer):
    """MosaicML Streaming's MDS shards, read by sample."""

    module = "streaming.base.format.mds"

    def __init__(self, folder: Path) -> None:
        from eupe_pipeline.teachers.runtime.torchvision_guard import install

        install()  # streaming imports torchvision, whose operators a CPU build of torch may lack
        super().__init__(folder)

    def write(self, rows: Rows) -> None:
        from streaming.base import MDSWriter  # type: ignore[import-not-found,unused-ignore]

        with MDSWriter(out=str(self.folder), columns={"row": "bytes"}, size_limit=130 * rows[0].nbytes) as writer:
            for row in rows:
                writer.write({"row": row.tobytes()})

    def open(self, shape: tuple[int, ...]) -> None:
        import json

        described = json.loads((self.folder / "index.json").read_text())["shards"]
        self.shards = [self.library.MDSReader.from_json(str(self.folder), None, entry) for entry in described]
        self.locations = [(shard, n) for shard, reader in enumerate(self.shards) for n in range(reader.samples)]
        self.shape = shape[1:]

    def read(self, indexes: Indexes, out: Rows) -> None:
        for place, row in enumerate(indexes.tolist()):
            shard, number = self.locations[row]
            out[place] = np.frombuffer(self.shards[shard][number]["row"], np.float16).reshape(self.shape)


class WebDataset(Peer):
    """WebDataset tars of 128 rows, read in shard order: it has no random rows, so it reads as many neighbouring ones."""

    module, order = "webdataset", "shard"

    def write(self, rows: Rows) -> None:
        self.folder.mkdir()
        for start in range(0, len(rows), 128):
            with tarfile.open(self.folder / f"{start // 128:06d}.tar", "w") as archive:
                for number, row in enumerate(rows[start : start + 128], start=start):
                    member = tarfile.TarInfo(f"{number:08d}.bin")
                    member.size = row.nbytes
                    archive.addfile(member, io.BytesIO(row.tobytes()))

    def open(self, shape: tuple[int, ...]) -> None:
        self.shape, self.shards = shape[1:], -(-shape[0] // 128)

    def read(self, indexes: Indexes, out: Rows) -> None:
        first = int(indexes[0]) // 128 % max(1, self.shards - 1)
        names = [str(self.folder / f"{(first + n) % self.shards:06d}.tar") for n in range(-(-len(out) // 128))]
        samples = self.library.WebDataset(names, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False)
        for place, sample in zip(range(len(out)), samples, strict=False):
            out[place] = np.frombuffer(sample["bin"], np.float16).reshape(self.shape)


PEERS: dict[str, type[Peer]] = {
    "zarr-python": Zarr,
    "tensorstore": TensorStore,
    "lmdb": Lmdb,
    "arrow": Arrow,
    "lance": Lance,
    "litdata": LitData,
    "mds": Mds,
    "webdataset": WebDataset,
}


def available(root: Path) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return the peers that can be imported, and why the others cannot."""
    found: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for name, kind in PEERS.items():
        try:
            found[name] = kind(root / name)
        except (ImportError, RuntimeError) as error:
            absent[name] = str(error).splitlines()[0]
    return found, absent


def synced(write: Callable[[Rows], None], rows: Rows, folder: Path) -> None:
    """Write, and make every file durable: the same promise as ours."""
    shutil.rmtree(folder, ignore_errors=True)
    write(rows)
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
