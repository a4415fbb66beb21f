"""Sources of images: a folder tree, WebDataset tar shards, or Parquet files with image bytes.

A source is walked in a fixed order and yields every image once with its location (file, offset, length), so that later reads go straight to
the bytes. A row of `CONTAINERS` says how the images of a file are found, and how one is read again. A file is an image by its signature, or
by its ending where that is an image's; everything else is counted by its ending. Compressed archives are refused: their members have no
offset. `source_contract` tests any source.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from ..core import choices
from ..core.errors import BadInput, EupeError
from ..core.urls import refuse_endpoint, refuse_secrets
from ..objects.remote import open_filesystem
from .folder_source import list_folder, not_a_file
from .hub_files import HubFiles, is_hub
from .image_kinds import (
    COMPRESSED_ENDINGS,
    CONTAINER_ENDINGS,
    HEAD_BYTES,
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    ending_of,
    is_image,
    too_large,
    unsupported_ending,
    unsupported_signature,
)
from .parquet_rows import parquet_row
from .parquet_source import walk_parquet
from .remote_files import RemoteFiles, S3Files
from .source_items import LeftOut, Skipped, SourceImage, SourceItem, bad_name, hidden_file, is_hidden, other_file, printable
from .tar_source import walk_tar
from .web_files import WebFiles, is_web


def _filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of a source and the path in it; reads of remote ones are retried (`remote_files`)."""
    if is_web(url):
        return WebFiles(url), url.rstrip("/")
    if is_hub(url):
        return HubFiles(url), url.removeprefix("hf://").rstrip("/")
    if url.startswith("/"):
        return _local_filesystem(url)
    filesystem, root = open_filesystem(url)
    if isinstance(filesystem, LocalFileSystem):
        return filesystem, root.rstrip("/")
    return (S3Files if url.startswith("s3:") else RemoteFiles)(filesystem, url), root.rstrip("/")


@lru_cache(maxsize=64)
def _local_filesystem(path: str) -> tuple[Any, str]:
    """Return what fsspec says of an absolute path; it takes as long as reading an image."""
    filesystem, root = open_filesystem(path)
    return filesystem, root.rstrip("/")


def open_source(url: str) -> tuple[Any, str]:
    """Return the file system and the path of a source; raise `BadInput` for a missing source and for a URL with secrets."""
    refuse_secrets("source", url)
    refuse_endpoint("source", url)
    try:
        filesystem, root = _filesystem_of(url)
        if not filesystem.exists(root):
            raise BadInput(f"the source {url} does not exist; give a folder of images, of .tar shards or of .parquet files")
    except EupeError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(f"the source {url} cannot be read: {error}") from error
    return filesystem, root


def _is_file(filesystem: Any, root: str) -> bool:
    """Return whether the source is one file. Over HTTP a listing looks like a file, so there the ending decides."""
    if is_web(root):
        return unsupported_ending(root) is not None or ending_of(root) in (*IMAGE_ENDINGS, *COMPRESSED_ENDINGS, *CONTAINER_ENDINGS)
    return bool(filesystem.isfile(root))


def _source_name(root: str) -> str:
    """Return the name of a source that is one file."""
    return unquote(root.rsplit("/", 1)[-1], errors="surrogateescape") if is_web(root) else root.rsplit("/", 1)[-1]


def list_files(filesystem: Any, root: str) -> list[str]:
    """Return the paths below the source, relative to it and sorted; of a single file its name (its folder is the root).

    Raise `BadInput` where a file lies inside another (ids would not be unique), and for a folder that cannot be listed.
    """
    if _is_file(filesystem, root):
        return [_source_name(root)]
    if isinstance(filesystem, LocalFileSystem):
        return sorted(list_folder(root or "/"))
    try:
        paths = [path[len(root) :].removeprefix("/") for path in filesystem.find(root)]  # one slash: `a//b` is a key of its own
    except EupeError:
        raise
    except OSError as error:
        raise BadInput(
            f"a folder of the source cannot be listed ({_error_text(error)}), so nobody knows which images would be missing"
        ) from error
    files = sorted(path for path in paths if path and not path.endswith("/"))  # an object store may mark folders by objects
    known = set(files)
    for path in files:  # an object store may hold both `a.tar` and `a.tar/x.png`
        container = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in known), None)
        if container is not None:
            raise BadInput(f"{path} lies inside {container}, which is a file: their images' ids are taken twice; move one of them away")
    return files


def _error_text(error: OSError) -> str:
    """Return the text of an error, with the address where a web server refused."""
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if is_web(str(error.filename)) else text


def walk(filesystem: Any, root: str, path: str) -> Iterator[SourceItem]:
    """Yield what one file of a source holds: itself, a tar's members, or a Parquet file's rows. Raise `BadInput` for an unreadable file."""
    is_source = _source_name(root) == path and _is_file(filesystem, root)
    full = root if is_source else f"{root}/{path}"
    not_an_image: Skipped | LeftOut | None = hidden_file(path) if is_hidden(path) and not is_source else None
    if not_an_image is None and isinstance(filesystem, LocalFileSystem):
        not_an_image = not_a_file(full, path)
    if not_an_image is not None:
        yield not_an_image
        return
    ending = ending_of(path)
    try:
        if ending in CONTAINER_ENDINGS:
            reason = bad_name(path.lstrip("/"))  # a key of an object store may begin with slashes
            if reason is not None:
                raise BadInput(f"{path!a} has {reason}, which can stand in no image's id; rename it")
            yield from CONTAINERS[ending.removeprefix(".")].walk(filesystem, full, path, is_source)
        else:
            yield from CONTAINERS["file"].walk(filesystem, full, path, is_source)
    except EupeError:
        raise
    except OSError as error:
        raise BadInput(
            f"{printable(path)} cannot be read ({_error_text(error)}); make it readable, or remove it from the source"
        ) from error


def _walk_file(filesystem: Any, full: str, path: str, is_source: bool) -> Iterator[SourceItem]:
    yield _examine_file(filesystem, full, path)


def _examine_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped | LeftOut:
    """Return a file of its own as an image, by its ending or its signature, or as a file of another kind."""
    if ending_of(path) in COMPRESSED_ENDINGS:
        return Skipped(printable(path), "compressed archives cannot be read in place; unpack it or store a plain .tar")
    if ending_of(path) in TEXT_ENDINGS:
        return other_file(path)
    reason = unsupported_ending(path)
    if reason is None and ending_of(path) not in IMAGE_ENDINGS:
        try:
            head = bytes(filesystem.cat_file(full, start=0, end=HEAD_BYTES))[:HEAD_BYTES]
        except EupeError:
            raise
        except OSError as error:  # it may be an image: nobody knows
            return Skipped(printable(path), f"cannot be read ({error.strerror or error})")
        reason = unsupported_signature(head)
        if reason is None and not is_image(head):
            return other_file(path)
    return _image_file(filesystem, full, path) if reason is None else Skipped(printable(path), reason)


def _image_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped:
    """Return an image file; its label is the folder that contains it."""
    reason = bad_name(path.lstrip("/"))
    if reason is not None:
        return Skipped(printable(path), reason)
    try:
        reason = too_large(int(filesystem.size(full)))
        if reason is not None:
            return Skipped(path, reason)
        data = filesystem.cat_file(full)
    except EupeError:
        raise
    except OSError as error:
        return Skipped(path, f"cannot be read ({error.strerror or error})")
    folder = str(PurePosixPath(path.lstrip("/")).parent)
    return SourceImage(path, path, "file", 0, data, None if folder == "." else folder)


def _walk_tar(filesystem: Any, full: str, path: str, is_source: bool) -> Iterator[SourceItem]:
    yield from walk_tar(filesystem, full, path)


def _read_file(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    if isinstance(filesystem, LocalFileSystem):  # whose `cat_file` takes three times as long
        with open(full, "rb", buffering=0) as file:
            return file.readall()
    return bytes(filesystem.cat_file(full))


def _read_range(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    if isinstance(filesystem, LocalFileSystem):
        with open(full, "rb") as file:  # buffered: one read may give less than was asked for
            file.seek(offset)
            return file.read(length)
    return bytes(filesystem.cat_file(full, start=offset, end=offset + length))


def _read_parquet(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    return parquet_row(filesystem, full, offset)


class Container(NamedTuple):
    """One kind of files that hold images."""

    name: choices.Container
    """As indexes have it; the ending of such files, but for "file"."""
    walk: Callable[[Any, str, str, bool], Iterator[SourceItem]]
    """Yield what a file holds: file system, full path, path in the source, whether the file is the whole source."""
    read: Callable[[Any, str, int, int], bytes]
    """Return an image's bytes: file system, full path, offset and length as they were found."""


_ROWS = (
    Container("file", _walk_file, _read_file),
    Container("tar", _walk_tar, _read_range),
    Container("parquet", walk_parquet, _read_parquet),
)
CONTAINERS: dict[str, Container] = {row.name: row for row in _ROWS}


def read_bytes(url: str, path: str, container: str, offset: int, length: int) -> bytes:
    """Return the bytes of one indexed image; raise OSError when it is not there any more, `StoreUnavailable` when no server answers."""
    filesystem, root = _filesystem_of(url)
    *others, last = _places(filesystem, root, path)
    for place in others:
        with contextlib.suppress(FileNotFoundError):
            return _read_container(filesystem, place, container, offset, length)
    return _read_container(filesystem, last, container, offset, length)


def _places(filesystem: Any, root: str, path: str) -> list[str]:
    """Return where an indexed file may lie, the likeliest place first: in the source, or it is the source."""
    if not is_web(root):
        inside = f"{root}/{path}"
        if root.rpartition("/")[2] != path:
            return [inside]
        if isinstance(filesystem, S3Files):  # where looking is a request, and so is not finding it
            return [root, inside]
        return [root if _is_file(filesystem, root) else inside]
    names = [path, unquote(path)] if unquote(path) != path else [path]  # indexes of before hold encoded names
    places = [f"{root}/{name}" for name in names]
    return [root, *places[1:]] if _source_name(root) in names and _is_file(filesystem, root) else places


def _read_container(filesystem: Any, full: str, container: str, offset: int, length: int) -> bytes:
    if container not in CONTAINERS:
        raise OSError(f"{full} is a {container}, a kind of file that this version does not read ({', '.join(CONTAINERS)})")
    return CONTAINERS[container].read(filesystem, full, offset, length)
