"""Read the members of a tar, with every byte up to the file's end accounted for.

Python's `tarfile` stops silently at the first header that it cannot read: a flipped bit, zeros, a truncation, or a second tar after the
first one would hide every later member. Here the archive ends at its zero blocks, and only zeros may follow; everything else is an error
that names the offset. Headers carry a checksum. Long names and PAX records carry none: their structure is checked, and they are compared
with what writers repeat in the member's own header; a flipped letter in a name that is not repeated cannot be detected. The file is read
from start to end, also where it cannot seek.
"""

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..core.errors import BadInput
from .source_items import printable

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20  # of a long name or of PAX records; hostile ones claim gigabytes
_MIN_PAX_ONLY_SIZE = 8 << 30  # sizes below fit into the member's own header
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LAYOUT_KEYS = (b"path", b"size")  # PAX records that say which bytes are whose


class Member(NamedTuple):
    """A member: its name and type, the offset and size of its bytes, and whether it is sparse."""

    name: str
    kind: bytes
    offset: int
    size: int
    is_sparse: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind in tarfile.REGULAR_TYPES


class _AlteredHeader(Exception):
    """A header or an extension cannot be what its writer wrote."""


class TarMembers:
    """Iterator over the members of an open tar; `read` gives bytes of the current one. Raises `BadInput` for a damaged archive."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path
        self._position = 0
        self._last: str | None = None
        self._global: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            end = member.offset + (0 if member.kind in _WITHOUT_DATA else _padded(member.size))
            yield member
            self._move(end, f"within the member {printable(member.name)}")
            self._last = printable(member.name)

    def read(self, size: int) -> bytes:
        """Return the next bytes of the current member."""
        start, data = self._position, self._take(size)
        if len(data) < size:
            raise self._damaged("it ends within a member", start + len(data))
        return data

    def _take(self, size: int) -> bytes:
        """Return the next bytes, fewer where the file ends."""
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        return b"".join(parts)

    def _move(self, to: int, where: str) -> None:
        """Move forward, and check that the file reaches so far: seeking past the end succeeds."""
        if to > self._position + 1:
            try:
                self._file.seek(to - 1)
                self._position = to - 1
            except ValueError:  # a stream, such as a reply without a length
                while self._position < to - 1 and self._take(min(_CHUNK, to - 1 - self._position)):
                    pass
        if to > self._position and not self._take(1):
            raise self._damaged(f"it ends {where}", self._position)

    def _next(self) -> Member | None:
        """Return the next member, after the extensions that belong to it; None at the end of the archive."""
        long_name: bytes | None = None
        records: dict[str, bytes] = {}
        while True:
            start, block = self._position, self._take(_BLOCK)
            if len(block) < _BLOCK:
                what = "it ends within a header" if block else "it ends without the zeros that close a tar, so it may have been cut"
                raise self._damaged(what, start)
            if not block.strip(b"\0"):
                if long_name is not None or records:
                    raise self._damaged("zeros stand in place of a header", start)
                self._check_end(start)
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if header.size < 0:
                    raise _AlteredHeader("a negative size")
                if header.type in _PAX:
                    records_of = self._global if header.type == tarfile.XGLTYPE else records
                    records_of.update(pax_records(self._extension(header.size)))
                elif header.type in _LONG_NAMES:
                    name = self._extension(header.size).rstrip(b"\0")
                    if not name:
                        raise _AlteredHeader("a long name of no letters")
                    long_name = name if header.type == tarfile.GNUTYPE_LONGNAME else long_name
                else:
                    self._skip_sparse_map(block if header.type == tarfile.GNUTYPE_SPARSE else b"")
                    return self._member(header, block, long_name, {**self._global, **records})
            except (tarfile.HeaderError, _AlteredHeader) as error:
                what = f"a header was altered ({error})" if start else f"it does not begin as a tar does ({error}); is it compressed"
                raise self._damaged(what, start) from error

    def _extension(self, size: int) -> bytes:
        """Return the bytes of a long name or of PAX records."""
        if size > _MAX_EXTENSION_BYTES:
            raise _AlteredHeader(f"an extension of {size:,} bytes")
        data = self.read(size)
        self._move(self._position + _padded(size) - size, "within an extension")
        return data

    def _skip_sparse_map(self, block: bytes) -> None:
        """Skip the blocks that continue the map of an old-style sparse file."""
        continues = block[482:483]
        while continues.strip(b"\0"):
            continues = self.read(_BLOCK)[504:505]

    def _member(self, header: tarfile.TarInfo, block: bytes, long_name: bytes | None, records: dict[str, bytes]) -> Member:
        """Return the member of a header and its extensions; raise `_AlteredHeader` where they disagree."""
        header_name = block[:100].split(b"\0")[0]
        name, size = header.name, header.size
        extended_name = long_name if long_name is not None else records.get("GNU.sparse.name", records.get("path"))
        if extended_name is not None:
            name = extended_name.decode("utf-8", "surrogateescape")
            spellings = (extended_name, name.encode("ascii", "replace"))
            if any(_one_bit_apart(spelling[: len(header_name)], header_name) for spelling in spellings):
                raise _AlteredHeader(f"its name {name!a} is one bit apart from {header_name!a}, which stands in the member's own header")
            name = name.rstrip("/")
        if "size" in records:
            size = _number(records["size"])
            if size < _MIN_PAX_ONLY_SIZE and size != header.size:
                raise _AlteredHeader(f"its PAX record has {size:,} bytes, the member's own header {header.size:,}")
        is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records)
        return Member(name, header.type, self._position, size, is_sparse)

    def _check_end(self, start: int) -> None:
        """Check that only zeros follow the first zero block."""
        position = self._position
        while chunk := self._take(_CHUNK):
            if rest := chunk.lstrip(b"\0"):
                first = position + len(chunk) - len(rest)
                what = f"the zeros that close a tar begin at byte {start:,}, and something follows"
                raise self._damaged(f"{what} (zeros over a header, or two tars joined)", first)
            position = self._position

    def _damaged(self, what: str, offset: int) -> BadInput:
        last_member = "no member is before it" if self._last is None else f"the last good member is {self._last}"
        return BadInput(
            f"{self._path} is not a readable tar file: {what}, at byte {offset:,}; {last_member}. Copy it or pack it again "
            "(`tar --ignore-zeros` unpacks joined tars), or remove it from the source"
        )


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _AlteredHeader(f"a PAX record with the size {digits[:20]!r}")
    return int(digits)


def pax_records(data: bytes) -> dict[str, bytes]:
    """Return the records `LENGTH KEY=VALUE\\n` of a PAX header; raise `_AlteredHeader` where the lengths are inconsistent."""
    records: dict[str, bytes] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8 or not len(digits) + 3 < int(digits) <= len(data):
            raise _AlteredHeader("a PAX record without a length")
        record, data = data[: int(digits)], data[int(digits) :]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not record.endswith(b"\n") or not equals or any(_one_bit_apart(key, layout_key) for layout_key in _LAYOUT_KEYS):
            raise _AlteredHeader(f"the PAX record {record[:40]!r}")
        records[key.decode("utf-8", "replace")] = value
    return records


def _one_bit_apart(left: bytes, right: bytes) -> bool:
    return len(left) == len(right) and sum((a ^ b).bit_count() for a, b in zip(left, right, strict=True)) == 1
