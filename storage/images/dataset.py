"""A dataset: the index of its images: their order, the location of their bytes, and the sha256 of those bytes.

    datasets/<name>@<digest>/
      identity.json       the digest over ids, contents, sizes and labels in order, and whether images are turned upright; the location of
                          the source; the sha256 of each part
      places/*.json       further locations of the same images (`locations`)
      removed.bits        which images left the source, where any did (`versions`)
      index.parquet       a row an image, the first 1,048,576 images; index.1.parquet the next ones, and so on

Every read of an image checks its sha256, so that an image edited after indexing is an error instead of other features. A part of the index
is checked when it is first needed, and rows are read by row groups, a few of which are cached: the whole index is never in memory.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..core.choices import JpegDecoder, Orientation
from ..core.errors import BadInput, CacheDamaged, CacheMismatch, StoreUnavailable
from ..core.forks import ForkSafeLock
from ..core.identity import canonical_json, digest, short
from ..core.lru_cache import LruCache
from ..core.selection import only_ids
from ..objects.content_addressed import parsing, read_identity_file
from ..objects.objects import LocalObjects, Objects
from ..sources.decode import BadImage, Pixels, decode_image, image_size_hw
from ..sources.sources import read_bytes
from . import fast_jpeg, nvjpeg
from .locations import other_locations
from .versions import REMOVED, REMOVED_BITS, Earlier, check_removed_bits, earlier_versions, removed_file

ROW_GROUP = 16_384
PART_IMAGES = 64 * ROW_GROUP
_KEPT_GROUPS = 16
_KEPT_PARTS = 4
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("container", pa.dictionary(pa.int8(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.binary(32)),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("label", pa.int32()),
    ]
)


_JPEG_DECODERS = {"simplejpeg": fast_jpeg.decode_jpeg, "nvjpeg": nvjpeg.decode_jpeg}
"""Those beside Pillow, which judges what they return None for."""


@dataclass(frozen=True)
class ImageRow:
    """One image of a dataset: id, location and sha256 of its bytes, size in pixels and label (−1: none)."""

    id: str
    path: str
    container: str
    offset: int
    length: int
    sha256: bytes
    height: int
    width: int
    label: int

    def content(self) -> bytes:
        """Return what the dataset's digest covers: everything but the location."""
        return f"{self.id}\0{self.sha256.hex()}\0{self.height}\0{self.width}\0{self.label}\n".encode()


def dataset_digest(
    content_hash: str, label_names: list[str], orientation: Orientation = "stored", removed_sha256: str | None = None
) -> str:
    """Return a dataset's digest from the sha256 over its rows' `content`, its label names, how its images are turned, which are removed."""
    orientation_part = [] if orientation == "stored" else [f"\norientation {orientation}"]  # no label holds a line break
    removed_part = [] if removed_sha256 is None else [f"\nremoved {removed_sha256}"]
    return hashlib.sha256("\0".join([content_hash, *label_names, *orientation_part, *removed_part]).encode()).hexdigest()


def part_name(number: int) -> str:
    """Return the file name of a part of the index."""
    return f"index.{number}.parquet" if number else "index.parquet"


def pack_description(described: dict[str, Any]) -> bytes:
    """Return `identity.json` of a dataset: canonical JSON that ends in a digest of itself."""
    return canonical_json({**described, "file_digest": digest(described)})


def read_description(objects: Objects, prefix: str) -> dict[str, Any]:
    """Return the verified content of a dataset's `identity.json`; raise `CacheDamaged`."""
    return parse_description(read_identity_file(objects, prefix), prefix)


def parse_description(data: bytes, prefix: str) -> dict[str, Any]:
    """Return the content of a dataset's `identity.json` from its bytes; raise `CacheDamaged` when it is altered or another dataset's."""
    with parsing(f"{prefix}/identity.json"):
        described: dict[str, Any] = json.loads(data)
        claimed_digest = described.pop("file_digest")
        if digest(described) != claimed_digest or pack_description(described) != data:
            raise ValueError("its own digest differs")
        orientation = described.get("orientation", "stored")  # what indexes of before mean
        if orientation not in get_args(Orientation):
            raise ValueError(f"an orientation of {orientation!r}")
        earlier_versions(described)
        removed = removed_file(described)
        if dataset_digest(described["content_sha256"], described["labels"], orientation, removed and removed[1]) != described["digest"]:
            raise ValueError("its labels or contents are not those of its digest")
        texts = [described["source"], *described["labels"], *described["index_sha256"], *described["skipped"].values()]
        numbers = [described["images"], described.get("oriented", 0), *described.get("left_out", {}).values()]
        if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError("a value of another type")
        if described["images"] < 1 or len(described["index_sha256"]) != -(-described["images"] // PART_IMAGES):
            raise ValueError(f"{described['images']} images in {len(described['index_sha256'])} parts")
        if type(described["content_sha256"]) is not str or type(described["digest"]) is not str:
            raise ValueError("a digest of another type")
    name = prefix.rpartition("/")[2].rpartition("@")[0]
    if prefix.rpartition("@")[2] != short(described["digest"]):
        raise CacheDamaged(f"{prefix} holds the dataset {name}@{short(described['digest'])}; was a folder renamed?")
    return described


class ImageDataset:
    """An indexed dataset of a store; thread-safe."""

    def __init__(self, objects: Objects, key: str) -> None:
        self.key, self.name = key, key.split("@")[0]
        self._objects, self._prefix = objects, f"datasets/{key}"
        described = read_description(objects, self._prefix)
        with parsing(f"{self._prefix}/identity.json"):
            self.digest: str = described["digest"]
            self.source: str = described["source"]
            self._location = self.source
            self.label_names: list[str] = list(described["labels"])
            self._count = int(described["images"])
            self.skipped: dict[str, str] = dict(described["skipped"])  # the first few; indexes of before had them all
            self.left_out: dict[str, int] = dict(described.get("left_out", {}))
            self.indexed: Orientation = described.get("orientation", "stored")
            self.oriented = int(described.get("oriented", 0))  # images with an orientation other than 1; 0 in indexes of before
            self.has_targets = not described.get("without_targets", False)
            self.content_sha256: str = described["content_sha256"]
            self.index_sha256: list[str] = list(described["index_sha256"])
            self.earlier: tuple[Earlier, ...] = earlier_versions(described)
            self.removed_count: int = described["removed"]["images"] if "removed" in described else 0
        self._described = described
        self.orientation = self.indexed  # how images are decoded; see `read_as`
        self.jpeg_decoder: JpegDecoder = "pillow"  # as well
        self._lock = ForkSafeLock()  # a Parquet file is read by one thread at a time
        self._parts: LruCache[int, pq.ParquetFile] = LruCache(_KEPT_PARTS)
        self._groups: LruCache[int, pa.Table] = LruCache(_KEPT_GROUPS)
        self._columns: LruCache[int, list[Any]] = LruCache(_KEPT_GROUPS)  # of a group, in SCHEMA's order: a row in a third of the time
        self._removed: NDArray[np.int64] | None = None if self.removed_count else np.empty(0, np.int64)

    def _open_part(self, number: int) -> pq.ParquetFile:
        """Open a part of the index, after checking its sha256."""
        where = f"{self._prefix}/{part_name(number)}"
        try:
            data = self._objects.read(where)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{where} is missing; {self._way_out}") from error
        if hashlib.sha256(data).hexdigest() != self.index_sha256[number]:
            raise CacheDamaged(f"{where} is damaged: sha256 differs from identity.json; {self._way_out}")
        with parsing(where):
            if isinstance(self._objects, LocalObjects):  # mapped, not held
                path = os.fsencode(Path(self._objects.root, where))  # as bytes: Arrow takes no name that is not UTF-8
                return pq.ParquetFile(pa.memory_map(path))  # type: ignore[arg-type]  # its stubs know no bytes
            return pq.ParquetFile(io.BytesIO(data))

    @property
    def _way_out(self) -> str:
        return f"index the source again (`eupe-pipeline index {self.source} --name {self.name} …`), which puts it right"

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"ImageDataset({self.key!r}, {self._count} images, {len(self.label_names)} labels)"

    def read_as(self, orientation: Orientation, jpeg_decoder: JpegDecoder | None = None) -> "ImageDataset":
        """Return the dataset with images decoded stored or upright whatever the index says, JPEGs by a decoder (None: as they were).

        It is the dataset itself where that changes nothing.
        """
        decoder = jpeg_decoder or self.jpeg_decoder
        orientation = orientation if self.oriented else self.orientation
        if (orientation, decoder) == (self.orientation, self.jpeg_decoder):
            return self
        other = copy.copy(self)
        other.orientation, other.jpeg_decoder = orientation, decoder
        return other

    @property
    def version(self) -> int:
        """Which version of its source this is, from 1 on."""
        return len(self.earlier) + 1

    def removed(self) -> NDArray[np.int64]:
        """Return the numbers of the images that left the source, ascending; raise `CacheDamaged`."""
        if self._removed is None:
            where, (length, _) = f"{self._prefix}/{REMOVED_BITS}", removed_file(self._described) or (0, "")
            try:
                data = self._objects.read(where, length)
            except FileNotFoundError as error:
                raise CacheDamaged(f"{where} is missing; {self._way_out}") from error
            check_removed_bits(data, self._described, where)
            self._removed = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), count=self._count, bitorder="little"))
        return self._removed

    def is_removed(self, index: int) -> bool:
        """Return whether an image left the source."""
        removed = self.removed()
        if not len(removed):
            return False
        place = int(np.searchsorted(removed, index))
        return place < len(removed) and int(removed[place]) == index

    @property
    def sources(self) -> list[str]:
        """Every known location of the images: the one indexed first, then those of copies that were indexed."""
        return [self.source, *other_locations(self._objects, self.key)]

    def _group(self, number: int) -> pa.Table:
        return self._groups.get_or_make(number, lambda: self._read_group(number))

    def _read_group(self, number: int) -> pa.Table:
        part, within = divmod(number, PART_IMAGES // ROW_GROUP)
        with self._lock, parsing(f"{self._prefix}/{part_name(part)}"):
            return self._parts.get_or_make(part, lambda: self._open_part(part)).read_row_group(within)

    def groups(self) -> Iterator[pa.Table]:
        """Yield all rows in order, 16,384 a table in `SCHEMA`."""
        yield from map(self._group, range(-(-self._count // ROW_GROUP)))

    def _columns_of(self, number: int) -> list[Any]:
        (batch,) = self._group(number).select(SCHEMA.names).combine_chunks().to_batches()
        return list(batch.columns)

    def _slice(self, start: int, stop: int, column: str) -> Any:
        if not 0 <= start <= stop <= self._count:
            raise BadInput(f"images {start} to {stop} of {self.key}, which has {self._count}")
        parts = []
        for number in range(start // ROW_GROUP, -(-stop // ROW_GROUP)):
            first = number * ROW_GROUP
            low, high = max(start, first) - first, min(stop, first + ROW_GROUP) - first
            parts += self._group(number).column(column).slice(low, high - low).chunks
        return pa.chunked_array(parts, type=SCHEMA.field(column).type)

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of the images [start, stop) in order."""
        return [str(value) for value in self._slice(start, stop, "id").to_pylist()]

    def sha256s(self, start: int, stop: int) -> list[bytes]:
        """Return the sha256 of the encoded bytes of the images [start, stop)."""
        return [bytes(value) for value in self._slice(start, stop, "sha256").to_pylist()]

    def sizes_hw(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return heights and widths (n, 2) in pixels of the images [start, stop) as they are decoded.

        Where that is not as they were indexed, they are read from each image's header; raise as `read_image` then.
        """
        if self.orientation != self.indexed:
            return np.array([self._decoded_hw(index) for index in range(start, stop)], np.int32).reshape(-1, 2)
        columns = [self._slice(start, stop, name).to_numpy() for name in ("height", "width")]
        return np.stack(columns, axis=1).astype(np.int32)

    def _decoded_hw(self, index: int) -> tuple[int, int]:
        if self.is_removed(index):  # nobody can say more of it than the index does
            row = self.row(index)
            return row.height, row.width
        return image_size_hw(self.read_image_bytes(index), where=self._where(index), orientation=self.orientation)

    def _where(self, index: int) -> str:
        return self._named(self.row(index))

    def _named(self, row: ImageRow) -> str:
        return f"image {row.id} of {self.key}"

    def labels(self) -> NDArray[np.int64]:
        """Return every image's label (N,) int64 as an index into `label_names`, −1 where it has none."""
        return np.asarray(self._slice(0, self._count, "label").to_numpy(), np.int64)

    def row(self, index: int) -> ImageRow:
        """Return the index row of one image; its size is that of its index."""
        if not 0 <= index < self._count:
            raise BadInput(f"image {index} of {self.key}, which has {self._count}")
        number, within = divmod(index, ROW_GROUP)
        columns = self._columns.get_or_make(number, lambda: self._columns_of(number))
        return ImageRow(*[column[within].as_py() for column in columns])

    def index_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row numbers (n,) of images by id, in the order of `ids`; raise `BadInput` naming an unknown id.

        The index is read group by group until all are found: seconds for a hundred million images, and no memory.
        """
        requested = pa.array(only_ids(ids), pa.string())
        unique_ids = requested.unique()
        rows = np.full(len(unique_ids), -1, np.int64)
        for number in range(-(-self._count // ROW_GROUP)):
            positions = np.asarray(pc.index_in(self._group(number).column("id"), value_set=unique_ids).fill_null(-1))
            matches = np.flatnonzero(positions >= 0)
            rows[positions[matches]] = number * ROW_GROUP + matches
            if (rows >= 0).all():
                break
        if (rows < 0).any():
            missing = str(unique_ids[int(np.flatnonzero(rows < 0)[0])])
            raise BadInput(f"{self.key} has no image {missing!r}; its first is {self.row(0).id!r}, `.ids(start, stop)` lists them")
        chosen: NDArray[np.int64] = rows[np.asarray(pc.index_in(requested, value_set=unique_ids))]
        return chosen

    def read_image_bytes(self, index: int) -> bytes:
        """Return the encoded bytes of one image, from any known location.

        Raise `CacheMismatch` when none has them as indexed, `BadImage` for an image that was removed from the source.
        """
        return self._read_row(index, self.row(index))

    def _read_row(self, index: int, row: ImageRow) -> bytes:
        if self.is_removed(index):
            raise BadImage(REMOVED)
        try:
            return self._bytes_at(self._location, row)
        except (CacheMismatch, StoreUnavailable):
            for location in self.sources:
                if location != self._location:
                    with contextlib.suppress(CacheMismatch, StoreUnavailable):
                        data = self._bytes_at(location, row)
                        self._location = location
                        return data
            raise

    def _bytes_at(self, location: str, row: ImageRow) -> bytes:
        advice = f"index the source again (`eupe-pipeline index {location} --name {self.name} …`) and extract for the new dataset"
        try:
            data = read_bytes(location, row.path, row.container, row.offset, row.length)
        except StoreUnavailable:  # nobody answers: the images may be as they were
            raise
        except (OSError, pa.ArrowException) as error:
            raise CacheMismatch(f"image {row.id} of {self.key} is not at {location}/{row.path} any more ({error}); {advice}") from error
        if hashlib.sha256(data).digest() != row.sha256:
            raise CacheMismatch(f"image {row.id} of {self.key} has changed since it was indexed (sha256 differs); {advice}")
        return data

    def read_image(self, index: int) -> Pixels:
        """Return one image as (height, width, 3) uint8 RGB, oriented as the dataset says; raise `CacheMismatch` or `BadImage`.

        Raise `BadInput` where the decoder that was chosen for JPEGs is not installed.
        """
        row = self.row(index)
        data = self._read_row(index, row)
        decode_jpeg = _JPEG_DECODERS.get(self.jpeg_decoder)
        fast = None if decode_jpeg is None else decode_jpeg(data, self.orientation)
        return decode_image(data, where=self._named(row), orientation=self.orientation) if fast is None else fast
