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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import BadInput
from ..core.identity import canonical_json, digest, short
from ..core.urls import is_url, normalize_scheme
from ..objects.content_addressed import parsing
from ..objects.objects import Objects
from ..sources.source_items import is_hidden

MAX_LOCATION_BYTES = 1 << 20
_LOCATION_COLUMNS = ["path", "container", "offset", "length"]


def canonical_source(source: str) -> str:
    """Return the one spelling of a source: an absolute path without `.`, `..` or a last slash for a local one, else a URL without one.

    `hub:datasets/OWNER/NAME@COMMIT` is `hf://datasets/OWNER/NAME@COMMIT`.
    Links stay as they are written, because they may lead elsewhere tomorrow. Raise `BadInput` for a path that is no text.
    """
    if source.startswith("hub:"):
        source = f"hf://{source.removeprefix('hub:')}"
    path = local_path(source)
    if path is None:
        scheme, _, rest = source.partition("://")
        return source if "::" in source else normalize_scheme(f"{scheme}://{rest.rstrip('/') or rest[:1]}")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
        raise BadInput(f"the source's path {path!a} has bytes that are not UTF-8; rename it, or index a link to it with another name")
    return path


def local_path(location: str) -> str | None:
    """Return a local place's absolute path without `.`, `..` or a last slash, its links as they are written; None of a URL elsewhere."""
    scheme, separator, rest = location.partition("://")
    if is_url(location) and scheme.lower() not in ("file", "local"):
        return None
    as_written = os.path.join(os.getcwd(), os.path.expanduser(rest if separator else location))
    path = os.path.normpath(as_written)
    if os.path.realpath(path) != os.path.realpath(as_written):  # `link/..` is not the folder that the link lies in
        path = as_written.rstrip("/")
    return "/" + path.lstrip("/")


def lies_inside(place: str, source: str) -> bool:
    """Return whether a local place is a source that is a local folder, or lies where that folder's walk comes: below it, not hidden."""
    path, folder = local_path(place), local_path(source)
    if path is None or folder is None or not os.path.isdir(folder):
        return False
    for written in (Path(path), Path(os.path.realpath(path))):  # a walk follows links to folders
        for above in (written, *written.parents):
            if os.path.realpath(above) == os.path.realpath(folder) and not is_hidden(str(written.relative_to(above))):
                return True
    return False


def _is_free(path: str) -> bool:
    """Return whether a folder can be made at a path, or an empty one is there."""
    there = next(above for above in (path, *map(str, Path(path).parents)) if os.path.lexists(above))
    try:
        return os.path.isdir(there) and (there != path or not os.listdir(path))
    except OSError:  # it cannot be read, which is said where the store is made
        return False


def refuse_store_inside(store: str, source: str, do: str = "give --store a folder outside of it") -> None:
    """Raise `BadInput` for a store that is not there yet and would lie in a local source folder; `do` says what to do instead.

    That folder could not be indexed any more. A folder with a store in it is refused by the walk, which names what it found, and a place
    that holds something else where the store is made.
    """
    path = local_path(store)
    if path is not None and _is_free(path) and lies_inside(path, source):
        raise BadInput(
            f"the store {path} would lie in {local_path(source)}, the source of its images, and that folder could not be "
            f"indexed again, because a store's own files are no images; {do}"
        )


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
