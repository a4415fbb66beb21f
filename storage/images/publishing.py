"""Publish a dataset: its index in parts, which images are removed, and last its identity.

Nothing that stands there and is whole is touched: a dataset of the same content gets a further location, and damaged files are written
again from the rows that its digest covers.
"""

import hashlib
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.choices import Orientation
from ..core.identity import short
from ..objects.content_addressed import MAX_IDENTITY_BYTES, parsing
from ..objects.damaged_files import read_and_check, read_or_flaw, replace_verified
from ..objects.objects import Objects
from .dataset import PART_IMAGES, ROW_GROUP, dataset_digest, pack_description, parse_description, part_name
from .growth import FinalRows
from .index_rows import IndexRows, rows_of
from .left_out import LeftOutCounts
from .locations import add_location
from .versions import REMOVED_BITS, check_removed_bits, removed_bits

TARGETS = "targets of dense tasks (.seg.png, .depth.png and so on) beside their image; --dense-targets takes them as images"


def digests_of_rows(rows: IndexRows, orientation: Orientation, final: FinalRows) -> tuple[str, str]:
    """Return the sha256 of the contents and the digest of the dataset."""
    hasher = hashlib.sha256()
    for table in rows.tables(ROW_GROUP, final.label_numbers, final.order, final.behind):
        for row in rows_of(table):
            hasher.update(row.content())
    content = hasher.hexdigest()
    # With nothing to turn, both readings are one, and older indexes are that one.
    reading = orientation if final.oriented else "stored"
    return content, dataset_digest(content, final.label_names, reading, final.removed_sha256)


def publish(
    objects: Objects, source: str, name: str, rows: IndexRows, left_out: LeftOutCounts, orientation: Orientation, final: FinalRows
) -> str:
    """Write a dataset, or repair the one that stands there and record where its images lie as well; return its key."""
    content_sha256, full_digest = digests_of_rows(rows, orientation, final)
    key = f"{name}@{short(full_digest)}"
    where = f"datasets/{key}/identity.json"

    def tables() -> Iterator[pa.Table]:
        return rows.tables(PART_IMAGES, final.label_numbers, final.order, final.behind)

    data, flaw = read_and_check(objects, where, partial(parse_description, prefix=f"datasets/{key}"), MAX_IDENTITY_BYTES)
    if data is not None and not flaw:
        described = parse_description(data, f"datasets/{key}")
        _repair_parts(objects, key, described, tables())
        _publish_removed(objects, key, described, final)
        add_location(objects, key, source, tables())
        return key
    # The index goes first: a dataset exists when its identity does.
    parts = [_publish_part(objects, key, table, number) for number, table in enumerate(tables())]
    described = {
        "kind": "dataset",
        "digest": full_digest,
        "source": source,
        "images": rows.count if final.order is None else len(final.order),
        "labels": final.label_names,
        "skipped": left_out.first,
        "content_sha256": content_sha256,
        "index_sha256": parts,
        **final.described(),
    }
    if final.oriented:
        described |= {"orientation": orientation, "oriented": final.oriented}
    if left_out.counts:
        described["left_out"] = dict(left_out.counts)
    if TARGETS in left_out.counts:
        described["without_targets"] = True
    _publish_removed(objects, key, described, final)
    if not objects.create(where, [pack_description(described)]) and flaw:
        replace_verified(objects, where, pack_description(described))
    return key


def _publish_removed(objects: Objects, key: str, described: dict[str, Any], final: FinalRows) -> None:
    """Write which images are removed, or repair a damaged file."""
    if final.removed_N is None:
        return
    where, content = f"datasets/{key}/{REMOVED_BITS}", removed_bits(final.removed_N)
    check = partial(check_removed_bits, described=described, where=where)
    if not objects.create(where, [content]) and read_and_check(objects, where, check)[1]:
        replace_verified(objects, where, content)


def part_bytes(table: pa.Table) -> bytes:
    """Return the file of a part of the index."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _publish_part(objects: Objects, key: str, table: pa.Table, number: int) -> str:
    """Write one part of the index; return the sha256 of the stored file, ours or an equal one that a killed run left.

    The dataset has no identity that would vouch for another file, and its digest is that of our rows: what differs from them is replaced.
    """
    content, where = part_bytes(table), f"datasets/{key}/{part_name(number)}"
    if objects.create(where, [content]):
        return hashlib.sha256(content).hexdigest()
    existing, flaw = read_and_check(objects, where, partial(_refuse_other_rows, table=table, where=where))
    if existing is None or flaw:
        replace_verified(objects, where, content)
        existing = content
    return hashlib.sha256(existing).hexdigest()


def _refuse_other_rows(data: bytes, table: pa.Table, where: str) -> None:
    with parsing(where):
        if not pq.read_table(io.BytesIO(data)).equals(table):
            raise ValueError("it has other rows")


def _repair_parts(objects: Objects, key: str, described: dict[str, Any], tables: Iterator[pa.Table]) -> None:
    """Rewrite damaged parts of an existing dataset, from the rows that its digest covers.

    Another version of Arrow may write the same rows in other bytes: the identity, written last, then names those.
    """
    sha256s = list(described["index_sha256"])
    for number, table in enumerate(tables):
        where = f"datasets/{key}/{part_name(number)}"
        existing, flaw = read_or_flaw(objects, where)
        if existing is None or flaw or hashlib.sha256(existing).hexdigest() != described["index_sha256"][number]:
            content = part_bytes(table)
            replace_verified(objects, where, content)
            sha256s[number] = hashlib.sha256(content).hexdigest()
    if sha256s != described["index_sha256"]:
        replace_verified(objects, f"datasets/{key}/identity.json", pack_description({**described, "index_sha256": sha256s}))
