"""The members of a tar, with every byte up to the file's end accounted for.

Python's `tarfile` ends without a word at the first header that it cannot read: a flipped bit, zeros, a cut, or a second tar behind the
first one then cost every member behind. Here the archive ends where its zeros begin, and nothing but zeros may follow; everything else is
an error that says where. Headers carry a checksum. What a long name or a PAX record holds carries none: their structure is checked, and
they are compared with what writers repeat in the member's own header; a flipped letter of a name that is not repeated is a name.
The file is read from its start to its end, also where it cannot be sought in.
"""

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..core.errors import BadInput
from .found import shown

_BLOCK = 512
_CHUNK = 1 << 20
_LONGEST_EXTENSION = 1 << 20  # of a long name or of PAX records; hostile ones claim gigabytes
_FIRST_PAX_SIZE = 8 << 30  # sizes below fit into the member's own header
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_RULING_KEYS = (b"path", b"size")  # PAX records that say which bytes are whose


class Member(NamedTuple):
    """A member: its name and type, where its bytes lie, and whether they have holes."""

    name: str
    kind: bytes
    offset: int
    size: int
    is_sparse: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind in tarfile.REGULAR_TYPES


class _Altered(Exception):
    """An extension that cannot be what its writer wrote."""


class TarMembers:
    """Iterates over the members of an open tar; `read` gives the bytes of the one at hand. Raises `BadInput` for a damaged archive."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path
        self._at = 0
        self._last: str | None = None
        self._global: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            end = member.offset + (0 if member.kind in _WITHOUT_DATA else _padded(member.size))
            yield member
            self._move(end, f"within the member {shown(member.name)}")
            self._last = shown(member.name)

    def read(self, size: int) -> bytes:
        """Return the next bytes of the member at hand."""
        start, data = self._at, self._take(size)
        if len(data) < size:
            raise self._damaged("it ends within a member", start + len(data))
        return data

    def _take(self, size: int) -> bytes:
        """Return the next bytes, fewer where the file ends."""
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        return b"".join(parts)

    def _move(self, to: int, where: str) -> None:
        """Go forward and make sure that the file reaches so far: behind its end, seeking succeeds."""
        if to > self._at + 1:
            try:
                self._file.seek(to - 1)
                self._at = to - 1
            except ValueError:  # a stream, such as a reply without a length
                while self._at < to - 1 and self._take(min(_CHUNK, to - 1 - self._at)):
                    pass
        if to > self._at and not self._take(1):
            raise self._damaged(f"it ends {where}", self._at)

    def _next(self) -> Member | None:
        """Return the next member, behind the extensions that belong to it; None at the archive's end."""
        long_name: bytes | None = None
        records: dict[str, bytes] = {}
        while True:
            start, block = self._at, self._take(_BLOCK)
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
                    raise _Altered("a negative size")
                if header.type in _PAX:
                    records_of = self._global if header.type == tarfile.XGLTYPE else records
                    records_of.update(pax_records(self._extension(header.size)))
                elif header.type in _LONG_NAMES:
                    name = self._extension(header.size).rstrip(b"\0")
                    if not name:
                        raise _Altered("a long name of no letters")
                    long_name = name if header.type == tarfile.GNUTYPE_LONGNAME else long_name
                else:
                    self._skip_sparse_map(block if header.type == tarfile.GNUTYPE_SPARSE else b"")
                    return self._member(header, block, long_name, {**self._global, **records})
            except (tarfile.HeaderError, _Altered) as error:
                what = f"a header was altered ({error})" if start else f"it does not begin as a tar does ({error}); is it compressed"
                raise self._damaged(what, start) from error

    def _extension(self, size: int) -> bytes:
        """Return the bytes of a long name or of PAX records."""
        if size > _LONGEST_EXTENSION:
            raise _Altered(f"an extension of {size:,} bytes")
        data = self.read(size)
        self._move(self._at + _padded(size) - size, "within an extension")
        return data

    def _skip_sparse_map(self, block: bytes) -> None:
        """Pass over the blocks that go on with an old sparse file's map."""
        more = block[482:483]
        while more.strip(b"\0"):
            more = self.read(_BLOCK)[504:505]

    def _member(self, header: tarfile.TarInfo, block: bytes, long_name: bytes | None, records: dict[str, bytes]) -> Member:
        """Return the member of a header and of its extensions; raise `_Altered` where the two disagree."""
        own = block[:100].split(b"\0")[0]
        name, size = header.name, header.size
        written = long_name if long_name is not None else records.get("GNU.sparse.name", records.get("path"))
        if written is not None:
            name = written.decode("utf-8", "surrogateescape")
            spellings = (written, name.encode("ascii", "replace"))
            if any(_one_bit_apart(spelling[: len(own)], own) for spelling in spellings):
                raise _Altered(f"its name {name!a} is one bit apart from {own!a}, which stands in the member's own header")
            name = name.rstrip("/")
        if "size" in records:
            size = _number(records["size"])
            if size < _FIRST_PAX_SIZE and size != header.size:
                raise _Altered(f"its PAX record has {size:,} bytes, the member's own header {header.size:,}")
        is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records)
        return Member(name, header.type, self._at, size, is_sparse)

    def _check_end(self, start: int) -> None:
        """Read on: behind the first block of zeros only zeros may follow."""
        at = self._at
        while chunk := self._take(_CHUNK):
            if rest := chunk.lstrip(b"\0"):
                first = at + len(chunk) - len(rest)
                what = f"the zeros that close a tar begin at byte {start:,}, and something follows"
                raise self._damaged(f"{what} (zeros over a header, or two tars joined)", first)
            at = self._at

    def _damaged(self, what: str, offset: int) -> BadInput:
        behind = "no member is before it" if self._last is None else f"the last good member is {self._last}"
        return BadInput(
            f"{self._path} is not a readable tar file: {what}, at byte {offset:,}; {behind}. Copy it or pack it again "
            "(`tar --ignore-zeros` unpacks joined tars), or remove it from the source"
        )


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _Altered(f"a PAX record with the size {digits[:20]!r}")
    return int(digits)


def pax_records(data: bytes) -> dict[str, bytes]:
    """Return the records `LENGTH KEY=VALUE\\n` of a PAX header; raise `_Altered` where the lengths do not lead from one to the next."""
    records: dict[str, bytes] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8 or not len(digits) + 3 < int(digits) <= len(data):
            raise _Altered("a PAX record without a length")
        record, data = data[: int(digits)], data[int(digits) :]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not record.endswith(b"\n") or not equals or any(_one_bit_apart(key, ruling) for ruling in _RULING_KEYS):
            raise _Altered(f"the PAX record {record[:40]!r}")
        records[key.decode("utf-8", "replace")] = value
    return records


def _one_bit_apart(left: bytes, right: bytes) -> bool:
    return len(left) == len(right) and sum((one ^ other).bit_count() for one, other in zip(left, right, strict=True)) == 1
