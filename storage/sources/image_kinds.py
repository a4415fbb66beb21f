"""Decide which files are images: by their signature (first bytes), and by their ending where it is an image's.

A file with an image's ending is expected to be one (a broken `.jpg` counts as a lost image). Files without such an ending may be images,
too (`.jfif`, `.pnm`, `.jpg_large` or no ending at all), and are recognised by their signature; only text endings are believed. Formats that
Pillow would open as something else are recognised by their endings: a camera's raw file has the signature of a TIFF, and a TIFF reader
finds its thumbnail.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from ..core.choices import CONTAINERS
from .decode import MAX_FILE_BYTES

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
HEAD_BYTES = 256  # enough for the start of every format below, comments of a PPM included
COMPRESSED_ENDINGS = (".tgz", ".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar")

CONTAINER_ENDINGS = tuple(f".{name}" for name in CONTAINERS if name != "file")

_UNSUPPORTED_ENDINGS = (
    *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".tga", ".dds", ".pcx", ".qoi"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq", ".dcr"),
    *(".kdc", ".erf", ".mef", ".mos", ".rwl", ".x3f"),
)
TEXT_ENDINGS = (
    *(".txt", ".text", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".htm", ".md", ".rst", ".yaml", ".yml", ".toml"),
    *(".ini", ".cfg", ".log", ".py", ".sh", ".cls", ".label"),
)  # not looked into: beside a million images lie a million captions, and on S3 each look is a request
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM = re.compile(rb"P[1-6]\s(?:\s|#[^\n]*\n)*\d+\s")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header behind the file's own; "BM" alone begins many a text
_UNSUPPORTED_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_UNSUPPORTED_SIGNATURES = (b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL \r\n", b"8BPS\0")
_TARGET_WORDS = (
    *("seg", "segm", "segmentation", "semantic", "semseg", "instance", "panoptic", "mask", "masks"),
    *("depth", "disparity", "normal", "normals"),
)


def ending_of(name: str) -> str:
    """Return the last ending in lower case, with its dot; "" when there is none."""
    return PurePosixPath(name).suffix.lower()


def is_image(head: bytes) -> bool:
    """Return whether a file with these first bytes has a format that `decode` reads."""
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    if head[:2] == b"BM":
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return _PNM.match(head) is not None


def unsupported_ending(name: str) -> str | None:
    """Return why an image of an unsupported format is left out, by its ending; None for other endings."""
    ending = ending_of(name)
    return f"{ending} images are not read here; convert it, for example to PNG" if ending in _UNSUPPORTED_ENDINGS else None


def unsupported_signature(head: bytes) -> str | None:
    """Return why an image of an unsupported format is left out, by its first bytes; None for others."""
    if head.startswith(_UNSUPPORTED_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:12] in _UNSUPPORTED_BRANDS):
        return "images of AVIF, HEIC, JPEG 2000, JPEG XL or PSD are not read here; convert it, for example to PNG"
    return None


def too_large(size: int) -> str | None:
    """Return why an image of so many bytes is left out, None when it is not."""
    return f"{size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}" if size > MAX_FILE_BYTES else None


def split_name(name: str) -> tuple[str, str, str]:
    """Return WebDataset's key, the part between it and the last ending, and that ending: `a/1.seg.png` gives (`a/1`, `seg`, `png`)."""
    path = PurePosixPath(name)
    stem, _, endings = path.name.partition(".")
    middle, _, last = endings.rpartition(".")
    return str(path.parent / stem), middle, last.lower()


def targets_among(images: Sequence[str]) -> set[str]:
    """Return the names (`1.seg.png`, `1.depth.png`) that are targets of dense tasks because their sample has another image (`1.jpg`)."""
    targets = {name: split_name(name)[0] for name in images if name.count(".") > 1 and _is_target(name)}
    if not targets:
        return set()
    keys = set(targets.values())
    with_image = {key for name in images if name not in targets and (key := split_name(name)[0]) in keys}
    return {name for name, key in targets.items() if key in with_image}


def _is_target(name: str) -> bool:
    return split_name(name)[1].rpartition(".")[2].lower() in _TARGET_WORDS
