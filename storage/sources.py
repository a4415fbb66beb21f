"""Where images come from: a folder tree, WebDataset tar shards, or Parquet files with image bytes.

Each source is walked in a fixed order and yields every image once, with its place (file, offset, length), so that later reads go straight
to the bytes: tar members are read in place, nothing is unpacked. Hostile archives cannot write anything because nothing is written; links,
devices, sparse and duplicate members, names that climb out, and files over the limit of `decode` are counted and left out. Compressed
tars are refused: their members have no offset.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from .decode import MAX_FILE_BYTES
from .errors import BadInput
from .parquet_source import parquet_row, parquet_rows
from .remote import lacks_credentials, no_credentials
from .urls import refuse_secrets

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

_UNREAD_ENDINGS = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef")  # counted, not passed over in silence
_COMPRESSED_ENDINGS = (".tgz", ".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar")


@dataclass(frozen=True)
class SourceImage:
    """One image where it lies: bytes `offset … offset + length` of `path`, or row `offset` of a Parquet file."""

    image_id: str
    path: str  # relative to the source
    container: str  # "file", "tar" or "parquet"
    offset: int
    data: bytes
    label: str | None


@dataclass(frozen=True)
class Skipped:
    """Something that looked like a sample and is not one: its name and why."""

    name: str
    reason: str


def open_source(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path of a source; raises `BadInput` when there is nothing, and for a URL with secrets."""
    refuse_secrets("source", url)
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
        return PurePosixPath(root).suffix.lower() in (*IMAGE_ENDINGS, *_UNREAD_ENDINGS, *_COMPRESSED_ENDINGS, ".tar", ".parquet")
    return bool(filesystem.isfile(root))


def list_files(filesystem: Any, root: str) -> list[str]:
    """Paths below the source, relative to it and sorted; a single file is its own source (its folder is the root).

    Raises `BadInput` where a file lies inside another: ids would not be unique.
    """
    if _is_file(filesystem, root):
        return [root.rsplit("/", 1)[-1]]
    found = [str(path)[len(root) :].lstrip("/") for path in filesystem.find(root)]
    files = sorted(path for path in found if not any(part.startswith(".") for part in PurePosixPath(path).parts))
    there = set(files)
    for path in files:  # an object store may hold both `a.tar` and `a.tar/x.png`
        inside = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in there), None)
        if inside is not None:
            raise BadInput(f"{path} lies inside {inside}, which is a file: their images' ids are taken twice; move one of them away")
    return files


def bad_name(name: str) -> str | None:
    """Why a file's or member's name cannot be an image id, None when it can."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a name with control characters or bytes that are not UTF-8"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "a name that leads out of the archive"
    return None


def walk(filesystem: Any, root: str, path: str) -> Iterator[SourceImage | Skipped]:
    """The images of one file of a source: itself, a tar's members, or a Parquet file's rows."""
    ending = PurePosixPath(path).suffix.lower()
    full = root if _is_file(filesystem, root) else f"{root}/{path}"
    if ending == ".tar":
        yield from _walk_tar(filesystem, full, path)
    elif ending == ".parquet":
        yield from _walk_parquet(filesystem, full, path)
    elif ending in IMAGE_ENDINGS:
        yield _one_file(filesystem, full, path)
    elif ending in _UNREAD_ENDINGS:
        yield Skipped(path, f"{ending} images are not read here; convert it, for example to PNG")
    elif ending in _COMPRESSED_ENDINGS:
        yield Skipped(path, "compressed archives cannot be read in place; unpack it or store a plain .tar")


def _one_file(filesystem: Any, full: str, path: str) -> SourceImage | Skipped:
    """An image file; its label is the folder that it lies in."""
    reason = bad_name(path)
    if reason is not None:
        return Skipped(ascii(path), reason)
    try:
        size = int(filesystem.size(full))
        if size > MAX_FILE_BYTES:
            return Skipped(path, f"{size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        data = filesystem.cat_file(full)
    except OSError as error:
        return Skipped(path, f"cannot be read ({error.strerror or error})")
    folder = str(PurePosixPath(path).parent)
    return SourceImage(path, path, "file", 0, data, None if folder == "." else folder)


def _refused_member(member: tarfile.TarInfo, seen: set[str]) -> str | None:
    """Why a tar member is left out, None when it is a usable file."""
    if not member.isfile():
        return "neither a file nor a folder"
    if member.issparse():
        return "a sparse file, which cannot be read in place"
    if member.size > MAX_FILE_BYTES:
        return f"{member.size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}"
    return bad_name(member.name) or ("a second member of this name" if member.name in seen else None)


def _walk_tar(filesystem: Any, full: str, path: str) -> Iterator[SourceImage | Skipped]:
    """Samples of a WebDataset shard: neighbouring members with one stem are one sample; `.cls`, `.label` or `.json` labels it."""
    seen: set[str] = set()
    pending: list[SourceImage] = []
    stem, label = "", None
    with filesystem.open(full, "rb") as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed with the file
            for member in archive:
                if member.isdir():
                    continue
                reason = _refused_member(member, seen)
                if reason is not None:
                    yield Skipped(f"{path}/{member.name}" if bad_name(member.name) is None else ascii(f"{path}/{member.name}"), reason)
                    continue
                seen.add(member.name)
                name = PurePosixPath(member.name)
                here = str(name.parent / name.name.split(".")[0])
                if here != stem:
                    yield from _labelled(pending, label)
                    pending, stem, label = [], here, None
                data = archive.extractfile(member)
                assert data is not None
                if name.suffix.lower() in _UNREAD_ENDINGS:
                    yield Skipped(
                        f"{path}/{member.name}", f"{name.suffix.lower()} images are not read here; convert them, for example to PNG"
                    )
                elif name.suffix.lower() in IMAGE_ENDINGS:
                    pending.append(SourceImage(f"{path}/{member.name}", path, "tar", member.offset_data, data.read(), None))
                else:
                    label = _sidecar_label(name.suffix.lower(), data.read(1 << 20)) or label
            yield from _labelled(pending, label)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            raise BadInput(f"{path} is not a readable tar file ({error}); remove it from the source or write it again") from error


def _labelled(images: list[SourceImage], label: str | None) -> Iterator[SourceImage]:
    for image in images:
        yield SourceImage(image.image_id, image.path, image.container, image.offset, image.data, label)


def _sidecar_label(ending: str, raw: bytes) -> str | None:
    """WebDataset's conventions: `.cls` holds the class, `.json` may have a "label" or "cls" key."""
    if ending in (".cls", ".label"):
        return _label_text(raw.decode("utf-8", "replace"))
    if ending == ".json":
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict):
            found = value.get("label", value.get("cls"))
            return None if found is None else _label_text(str(found))
    return None


def _label_text(text: str) -> str:
    """A label as it is kept: one line, at most 200 characters, valid UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]


def _walk_parquet(filesystem: Any, full: str, path: str) -> Iterator[SourceImage | Skipped]:
    for row, (data, label) in enumerate(parquet_rows(filesystem, full, path)):
        name, text = f"{path}/{row}", None if label is None else _label_text(str(label))
        yield Skipped(name, "no image bytes") if data is None else SourceImage(name, path, "parquet", row, data, text)


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
