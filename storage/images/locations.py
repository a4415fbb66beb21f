"""Further locations of a dataset's images: the same bytes under the same names, somewhere else.

    datasets/<name>@<digest>/places/<short>.json     {"index_sha256", "source", "file_digest"}: canonical JSON

Indexing a copy of a dataset yields the existing dataset, and the copy's location is stored beside it. A reader uses the location that was
indexed first; when an image is missing or has other bytes there, it tries the others and stays with the first that has the image. The bytes
are checked against the index wherever they come from. A copy must have the same layout: an archive that was packed again has its members at
other offsets, and is refused with advice.
"""

import json
import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import BadInput
from ..core.identity import canonical_json, digest, short
from ..core.urls import is_url, normalize_scheme
from ..objects.content_addressed import parsing
from ..objects.objects import Objects

MAX_LOCATION_BYTES = 1 << 20
_LOCATION_COLUMNS = ["path", "container", "offset", "length"]


def canonical_source(source: str) -> str:
    """Return the one spelling of a source: an absolute path without `.`, `..` or a last slash for a local one, else a URL without one.

    `hub:datasets/OWNER/NAME@COMMIT` is `hf://datasets/OWNER/NAME@COMMIT`.
    Links stay as they are written, because they may lead elsewhere tomorrow. Raise `BadInput` for a path that is no text.
    """
    if source.startswith("hub:"):
        source = f"hf://{source.removeprefix('hub:')}"
    scheme, separator, rest = source.partition("://")
    if is_url(source) and scheme.lower() not in ("file", "local"):
        return source if "::" in source else normalize_scheme(f"{scheme}://{rest.rstrip('/') or rest[:1]}")
    as_written = os.path.join(os.getcwd(), os.path.expanduser(rest if separator else source))
    path = os.path.normpath(as_written)
    if os.path.realpath(path) != os.path.realpath(as_written):  # `link/..` is not the folder that the link lies in
        path = as_written.rstrip("/")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
        raise BadInput(f"the source's path {path!a} has bytes that are not UTF-8; rename it, or index a link to it with another name")
    return "/" + path.lstrip("/")


def add_location(objects: Objects, key: str, source: str, tables: Iterable[pa.Table]) -> bool:
    """Store a further location of a dataset's images; return whether it is new. Raise `BadInput` when the layout there differs."""
    described = json.loads(objects.read(f"datasets/{key}/identity.json"))
    if canonical_source(source) in {canonical_source(known) for known in (described["source"], *other_locations(objects, key))}:
        return False
    for number, table in enumerate(tables):
        where = f"datasets/{key}/index.{number}.parquet" if number else f"datasets/{key}/index.parquet"
        with parsing(where):
            indexed = pq.read_table(pa.BufferReader(objects.read(where)), columns=_LOCATION_COLUMNS)
        if not indexed.equals(table.select(_LOCATION_COLUMNS).cast(indexed.schema)):
            raise BadInput(
                f"{source} has the images of {key}, but at other places within its files; index it under another name, "
                "or copy the files as they are"
            )
    body = {"index_sha256": described["index_sha256"], "source": source}
    return objects.create(f"datasets/{key}/places/{short(digest(body))}.json", [canonical_json({**body, "file_digest": digest(body)})])


def other_locations(objects: Objects, key: str) -> list[str]:
    """Return the further sources of a dataset, in order of their files' names; raise `CacheDamaged` for an altered file."""
    locations = []
    for name in objects.names(f"datasets/{key}/places"):
        where = f"datasets/{key}/places/{name}"
        locations.append(parse_location(objects.read(where, MAX_LOCATION_BYTES), where))
    return locations


def parse_location(data: bytes, where: str) -> str:
    """Return the source that a location file names; raise `CacheDamaged` for an altered file."""
    with parsing(where):
        body = json.loads(data)
        claimed_digest = body.pop("file_digest")
        if (
            digest(body) != claimed_digest
            or canonical_json({**body, "file_digest": claimed_digest}) != data
            or type(body["source"]) is not str
        ):
            raise ValueError("its own digest differs")
        return str(body["source"])
