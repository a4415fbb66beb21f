"""Where images come from: a folder tree, WebDataset tar shards, or Parquet files with image bytes.

Each source is walked in a fixed order and yields every image once, with its place (file, offset, length), so that later reads go straight
to the bytes. A row of `CONTAINERS` says how the images of a file are found, and how one is read again. What is an image is decided by its
content, and by its ending where that promises one; everything else is counted by its ending. Compressed archives are refused: their members
have no offset. `source_contract` tests a source, whatever it is made of and wherever it lies.
"""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from ..core import choices
from ..core.errors import BadInput, EupeError
from ..core.urls import refuse_endpoint, refuse_secrets
from ..objects.remote import connected
from .folder_source import list_folder, not_a_file
from .found import Found, LeftOut, Skipped, SourceImage, bad_name, hidden, is_hidden, of_another_kind, shown
from .image_kinds import (
    COMPRESSED_ENDINGS,
    CONTAINER_ENDINGS,
    HEAD_BYTES,
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    ending_of,
    is_image,
    too_large,
    unread_ending,
    unread_start,
)
from .parquet_source import parquet_row, walk_parquet
from .remote_files import RemoteFiles
from .tar_source import walk_tar
from .web_files import WebFiles, is_web


def _files_of(url: str) -> tuple[Any, str]:
    """The file system of a source and the path in it; what lies elsewhere is read with patience (`remote_files`)."""
    if is_web(url):
        return WebFiles(url), url.rstrip("/")
    filesystem, root = connected(url)
    return (filesystem if isinstance(filesystem, LocalFileSystem) else RemoteFiles(filesystem, url)), root.rstrip("/")


def open_source(url: str) -> tuple[Any, str]:
    """The file system and the path of a source; raises `BadInput` when there is nothing, and for a URL with secrets."""
    refuse_secrets("source", url)
    refuse_endpoint("source", url)
    try:
        filesystem, root = _files_of(url)
        if not filesystem.exists(root):
            raise BadInput(f"the source {url} does not exist; give a folder of images, of .tar shards or of .parquet files")
    except EupeError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(f"the source {url} cannot be read: {error}") from error
    return filesystem, root


def _is_file(filesystem: Any, root: str) -> bool:
    """Whether the source is one file. To HTTP every address is a file, those of listings too, so there its ending decides."""
    if is_web(root):
        return unread_ending(root) is not None or ending_of(root) in (*IMAGE_ENDINGS, *COMPRESSED_ENDINGS, *CONTAINER_ENDINGS)
    return bool(filesystem.isfile(root))


def _name(root: str) -> str:
    """What a source that is one file is called."""
    return unquote(root.rsplit("/", 1)[-1], errors="surrogateescape") if is_web(root) else root.rsplit("/", 1)[-1]


def list_files(filesystem: Any, root: str) -> list[str]:
    """Paths below the source, relative to it and sorted; a single file is its own source (its folder is the root).

    Raises `BadInput` where a file lies inside another (ids would not be unique), and for a folder that cannot be listed.
    """
    if _is_file(filesystem, root):
        return [_name(root)]
    if isinstance(filesystem, LocalFileSystem):
        return sorted(list_folder(root or "/"))
    try:
        found = [path[len(root) :].removeprefix("/") for path in filesystem.find(root)]  # one slash: `a//b` is a key of its own
    except EupeError:
        raise
    except OSError as error:
        raise BadInput(f"a folder of the source cannot be listed ({_why(error)}), so nobody knows which images would be missing") from error
    files = sorted(path for path in found if path and not path.endswith("/"))  # an object store may mark folders by objects
    there = set(files)
    for path in files:  # an object store may hold both `a.tar` and `a.tar/x.png`
        inside = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in there), None)
        if inside is not None:
            raise BadInput(f"{path} lies inside {inside}, which is a file: their images' ids are taken twice; move one of them away")
    return files


def _why(error: OSError) -> str:
    """What an error says; where a web server refused, with the address."""
    said = error.strerror or str(error)
    return f"{said}: {error.filename}" if is_web(str(error.filename)) else said


def walk(filesystem: Any, root: str, path: str) -> Iterator[Found]:
    """What one file of a source holds: itself, a tar's members, or a Parquet file's rows. Raises `BadInput` for one that cannot be read."""
    is_source = _name(root) == path and _is_file(filesystem, root)
    full = root if is_source else f"{root}/{path}"
    other: Skipped | LeftOut | None = hidden(path) if is_hidden(path) and not is_source else None
    if other is None and isinstance(filesystem, LocalFileSystem):
        other = not_a_file(full, path)
    if other is not None:
        yield other
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
        raise BadInput(f"{shown(path)} cannot be read ({_why(error)}); make it readable, or remove it from the source") from error


def _walk_file(filesystem: Any, full: str, path: str, is_source: bool) -> Iterator[Found]:
    yield _one_file(filesystem, full, path)


def _one_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped | LeftOut:
    """A file of its own: an image by its ending or its first bytes, or a file of another kind."""
    if ending_of(path) in COMPRESSED_ENDINGS:
        return Skipped(shown(path), "compressed archives cannot be read in place; unpack it or store a plain .tar")
    if ending_of(path) in TEXT_ENDINGS:
        return of_another_kind(path)
    reason = unread_ending(path)
    if reason is None and ending_of(path) not in IMAGE_ENDINGS:
        try:
            head = bytes(filesystem.cat_file(full, start=0, end=HEAD_BYTES))[:HEAD_BYTES]
        except EupeError:
            raise
        except OSError as error:  # it may be an image: nobody knows
            return Skipped(shown(path), f"cannot be read ({error.strerror or error})")
        reason = unread_start(head)
        if reason is None and not is_image(head):
            return of_another_kind(path)
    return _image_file(filesystem, full, path) if reason is None else Skipped(shown(path), reason)


def _image_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped:
    """An image file; its label is the folder that it lies in."""
    reason = bad_name(path.lstrip("/"))
    if reason is not None:
        return Skipped(shown(path), reason)
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


def _walk_tar(filesystem: Any, full: str, path: str, is_source: bool) -> Iterator[Found]:
    yield from walk_tar(filesystem, full, path)


def _read_whole(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    return bytes(filesystem.cat_file(full))


def _read_range(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    return bytes(filesystem.cat_file(full, start=offset, end=offset + length))


def _read_parquet(filesystem: Any, full: str, offset: int, length: int) -> bytes:
    return parquet_row(filesystem, full, offset)


class Container(NamedTuple):
    """One kind of files that hold images."""

    name: choices.Container
    """As indexes have it; the ending of such files, but for "file"."""
    walk: Callable[[Any, str, str, bool], Iterator[Found]]
    """Yield what a file holds: file system, full path, path in the source, whether the file is the whole source."""
    read: Callable[[Any, str, int, int], bytes]
    """Return an image's bytes: file system, full path, offset and length as they were found."""


_ROWS = (
    Container("file", _walk_file, _read_whole),
    Container("tar", _walk_tar, _read_range),
    Container("parquet", walk_parquet, _read_parquet),
)
CONTAINERS: dict[str, Container] = {row.name: row for row in _ROWS}


def read_bytes(url: str, path: str, container: str, offset: int, length: int) -> bytes:
    """The bytes of one indexed image; raises FileNotFoundError or OSError when the place is gone, `StoreUnavailable` when none answers."""
    filesystem, root = _files_of(url)
    names = (path, unquote(path)) if is_web(url) else (path,)
    full = root if _name(root) in names and _is_file(filesystem, root) else f"{root}/{path}"
    try:
        return _bytes_of(filesystem, full, container, offset, length)
    except FileNotFoundError:
        if not is_web(url) or unquote(path) == path:
            raise
    return _bytes_of(filesystem, f"{root}/{unquote(path)}", container, offset, length)  # indexes of before hold encoded names


def _bytes_of(filesystem: Any, full: str, container: str, offset: int, length: int) -> bytes:
    if container not in CONTAINERS:
        raise OSError(f"{full} is a {container}, a kind of file that this version does not read ({', '.join(CONTAINERS)})")
    return CONTAINERS[container].read(filesystem, full, offset, length)
