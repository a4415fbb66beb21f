"""Where images come from: a folder tree, WebDataset tar shards, or Parquet files with image bytes.

Each source is walked in a fixed order and yields every image once, with its place (file, offset, length), so that later reads go straight
to the bytes. What is an image is decided by its content, and by its ending where that promises one; everything else is counted by its
ending. Compressed archives are refused: their members have no offset.
"""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .errors import BadInput, EupeError
from .folder_source import list_folder, not_a_file
from .found import Found, LeftOut, Skipped, SourceImage, bad_name, hidden, is_hidden, of_another_kind, shown
from .image_kinds import (
    COMPRESSED_ENDINGS,
    HEAD_BYTES,
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    ending_of,
    is_image,
    too_large,
    unread_ending,
    unread_start,
)
from .parquet_source import parquet_row, parquet_rows
from .remote import lacks_credentials, no_credentials
from .tar_source import walk_tar
from .urls import refuse_endpoint, refuse_secrets


def open_source(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path of a source; raises `BadInput` when there is nothing, and for a URL with secrets."""
    refuse_secrets("source", url)
    refuse_endpoint("source", url)
    try:
        filesystem, root = fsspec.url_to_fs(url)
        if not filesystem.exists(root):
            raise BadInput(f"the source {url} does not exist; give a folder of images, of .tar shards or of .parquet files")
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the source {url} cannot be read: {error}") from error
    except Exception as error:  # botocore's errors have no common base with ours
        if lacks_credentials(error):
            raise no_credentials(url, error) from error
        raise
    return filesystem, root.rstrip("/")


def _is_file(filesystem: Any, root: str) -> bool:
    """Whether the source is one file. To HTTP every address is a file, those of listings too, so there its ending decides."""
    if root.startswith(("http://", "https://")):
        return unread_ending(root) is not None or ending_of(root) in (*IMAGE_ENDINGS, *COMPRESSED_ENDINGS, ".tar", ".parquet")
    return bool(filesystem.isfile(root))


def list_files(filesystem: Any, root: str) -> list[str]:
    """Paths below the source, relative to it and sorted; a single file is its own source (its folder is the root).

    Raises `BadInput` where a file lies inside another (ids would not be unique), and for a folder that cannot be listed.
    """
    if _is_file(filesystem, root):
        return [root.rsplit("/", 1)[-1]]
    if isinstance(filesystem, LocalFileSystem):
        return sorted(list_folder(root or "/"))
    found = (str(path)[len(root) :].lstrip("/") for path in filesystem.find(root))
    files = sorted(path for path in found if path and not path.endswith("/"))  # an object store may mark folders by objects
    if root.startswith(("http://", "https://")):
        files = [path for path in files if "?" not in path]  # a listing's own links, such as those that sort it
    there = set(files)
    for path in files:  # an object store may hold both `a.tar` and `a.tar/x.png`
        inside = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in there), None)
        if inside is not None:
            raise BadInput(f"{path} lies inside {inside}, which is a file: their images' ids are taken twice; move one of them away")
    return files


def walk(filesystem: Any, root: str, path: str) -> Iterator[Found]:
    """What one file of a source holds: itself, a tar's members, or a Parquet file's rows. Raises `BadInput` for one that cannot be read."""
    is_source = PurePosixPath(root).name == path and _is_file(filesystem, root)
    full = root if is_source else f"{root}/{path}"
    other: Skipped | LeftOut | None = hidden(path) if is_hidden(path) and not is_source else None
    if other is None and isinstance(filesystem, LocalFileSystem):
        other = not_a_file(full, path)
    if other is not None:
        yield other
        return
    try:
        if ending_of(path) in _CONTAINERS:
            reason = bad_name(path)
            if reason is not None:
                raise BadInput(f"{path!a} has {reason}, which can stand in no image's id; rename it")
            yield from _CONTAINERS[ending_of(path)](filesystem, full, path)
        else:
            yield _one_file(filesystem, full, path)
    except EupeError:
        raise
    except OSError as error:
        raise BadInput(
            f"{shown(path)} cannot be read ({error.strerror or error}); make it readable, or remove it from the source"
        ) from error


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
        except OSError as error:  # it may be an image: nobody knows
            return Skipped(shown(path), f"cannot be read ({error.strerror or error})")
        reason = unread_start(head)
        if reason is None and not is_image(head):
            return of_another_kind(path)
    return _image_file(filesystem, full, path) if reason is None else Skipped(shown(path), reason)


def _image_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped:
    """An image file; its label is the folder that it lies in."""
    reason = bad_name(path)
    if reason is not None:
        return Skipped(shown(path), reason)
    try:
        reason = too_large(int(filesystem.size(full)))
        if reason is not None:
            return Skipped(path, reason)
        data = filesystem.cat_file(full)
    except OSError as error:
        return Skipped(path, f"cannot be read ({error.strerror or error})")
    folder = str(PurePosixPath(path).parent)
    return SourceImage(path, path, "file", 0, data, None if folder == "." else folder)


def _label_text(text: str) -> str:
    """A label as it is kept: one line, at most 200 characters, valid UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]


def _walk_parquet(filesystem: Any, full: str, path: str) -> Iterator[SourceImage | Skipped]:
    for row, (data, label) in enumerate(parquet_rows(filesystem, full, path)):
        name, text = f"{path}/{row}", None if label is None else _label_text(str(label))
        yield Skipped(name, "no image bytes") if data is None else SourceImage(name, path, "parquet", row, data, text)


_CONTAINERS: dict[str, Callable[[Any, str, str], Iterator[Found]]] = {".tar": walk_tar, ".parquet": _walk_parquet}


def read_bytes(url: str, path: str, container: str, offset: int, length: int) -> bytes:
    """The bytes of one indexed image; raises FileNotFoundError or OSError when the place is gone."""
    filesystem, root = fsspec.url_to_fs(url)
    root = root.rstrip("/")
    full = root if PurePosixPath(root).name == path and _is_file(filesystem, root) else f"{root}/{path}"
    if container == "parquet":
        return parquet_row(filesystem, full, offset)
    if container == "file":
        return bytes(filesystem.cat_file(full))
    data = bytes(filesystem.cat_file(full, start=offset, end=offset + length))
    return data if len(data) <= length else data[offset : offset + length]  # a web server may answer a range with the whole file
