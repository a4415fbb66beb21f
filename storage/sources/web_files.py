"""Files on a web server: file names are decoded, addresses are encoded, and the server's headers are not trusted.

A path is the source's address, a slash, and a name as it is on the server's disk (`100% real.png`); its address is encoded
(`100%25%20real.png`), as links in a listing are. A server may omit the length, may answer a range request with the whole file, may ask to
retry later (429, 503, Retry-After), and may end a reply early: ranges are requested first, and from a server without them each file is
copied once. 404, 403 and other refusals are permanent.
"""

import email.utils
import errno
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from http import HTTPStatus
from typing import IO, Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

import fsspec
from fsspec.asyn import sync

from ..core.errors import BadInput
from ..objects.remote import TryLater
from .decode import MAX_FILE_BYTES
from .remote_files import RemoteFiles

_SAFE_CHARACTERS = "/~!$&'()*+,;=:@"  # what an address holds unencoded
_UNENCODED_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_PERMANENT = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
_READ_TIMEOUT_S, _CONNECT_TIMEOUT_S = 60, 10  # without a byte, and without a connection
_TEMPORARY = (408, 425, 429)  # and all from 500
_MAX_DEPTH = 64
_CHUNK_BYTES = 1 << 20

Result = TypeVar("Result")


class _Probe(NamedTuple):
    """What a request of one byte tells about a file: its length, None when unknown, and whether the server supports ranges."""

    size: int | None
    has_ranges: bool


def is_web(url: str) -> bool:
    """Return whether a URL or path is on a web server."""
    return url.startswith(("http://", "https://"))


class WebFiles(RemoteFiles):
    """The files below one address."""

    def __init__(self, url: str) -> None:
        import aiohttp  # costs a start 0.2 s

        wait = aiohttp.ClientTimeout(total=None, sock_read=_READ_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
        super().__init__(fsspec.filesystem("https", encoded=True, client_kwargs={"timeout": wait}), url)
        self._root = url.rstrip("/")
        if not urlsplit(self._root).hostname:
            raise BadInput(f"the source {url} names no server; an address is http://SERVER/PATH")

    def address(self, path: str) -> str:
        """Return the encoded address of a path; the source's own part may be encoded already."""
        root = quote(_UNENCODED_PERCENT.sub("%25", self._root), safe="%[]" + _SAFE_CHARACTERS)
        if not path.startswith(f"{self._root}/"):
            return root
        return f"{root}/{quote(path[len(self._root) + 1 :], safe=_SAFE_CHARACTERS, errors='surrogateescape')}"

    def exists(self, path: str) -> bool:
        """Return whether the file exists; raise PermissionError where the server refuses to say."""
        try:
            self._probe(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Return whether the file exists: a web server tells no more."""
        return self.exists(path)

    def ukey(self, path: str) -> str:
        """Return the address: the version is not requested for each image."""
        return self.address(path)

    def size(self, path: str) -> int:
        """Return the length in bytes; where the server does not say it, count the bytes up to the limit."""
        size = self._probe(path).size
        return len(self.cat_file(path, 0, MAX_FILE_BYTES + 1)) if size is None else size

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes [start, end), or all, whether the server supports ranges or not."""
        if start is None or end is None:
            return self._ask("read", path, None, _read_all)
        first, last = start, end

        async def part(reply: Any) -> bytes:
            return await _read_part(reply, first, last)

        return self._ask("read", path, (first, last), part)

    def version(self, path: str) -> tuple[str, int]:
        """Return the address, and the length, or −1 where the file can only be read as a whole."""
        probe = self._probe(path)
        return self.ukey(path), probe.size if probe.has_ranges and probe.size is not None else -1

    def open_version(self, path: str, size: int, ukey: str, span: tuple[int, int] | None = None) -> IO[bytes]:
        """Open the file by ranges, or a temporary copy."""
        return self.open(path) if size < 0 else super().open_version(path, size, ukey, span)

    def open(self, path: str, mode: str = "rb") -> IO[bytes]:
        """Open the file by ranges, or a temporary copy from a server without ranges or without lengths."""
        probe = self._probe(path)
        if probe.size is not None and probe.has_ranges:
            return self._ranged(path, probe.size)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it

        async def save(reply: Any) -> None:
            copy.seek(0)
            copy.truncate()  # of an earlier try
            async for piece in reply.content.iter_chunked(_CHUNK_BYTES):
                copy.write(piece)

        try:
            self._ask("read", path, None, save)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def find(self, root: str) -> list[str]:
        """Return the paths of all files that listings below a folder link to; raise OSError when one cannot be read."""
        files, pending, seen = dict[str, None](), [""], set[str]()
        while pending:
            folder = pending.pop()
            seen.add(folder)
            if folder.count("/") > _MAX_DEPTH:
                raise BadInput(f"{self.address(f'{root}/{folder}')} lies {_MAX_DEPTH} folders deep; does a link lead back?")
            base, page = self._listing(f"{root}/{folder}")
            for name in _names_in(base, page):
                path = folder + name
                if name.endswith("/"):
                    pending += [path] if path not in seen else []
                else:
                    files[f"{root}/{path}"] = None
        return list(files)

    def _listing(self, path: str) -> tuple[str, str]:
        """Return the address at which a folder's listing was found, and its page."""

        async def read(reply: Any) -> tuple[str, str]:
            return str(reply.url), (await reply.read()).decode("utf-8", "replace")

        return self._ask("list", path, None, read)

    def _probe(self, path: str) -> _Probe:
        async def look(reply: Any) -> _Probe:
            content_range = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
            if reply.status in (206, 416) and content_range is not None:
                return _Probe(None if content_range[3] == "*" else int(content_range[3]), True)
            length = reply.headers.get("Content-Length", "")
            return _Probe(int(length) if length.isdecimal() and reply.status == 200 else None, False)

        return self._ask("find", path, (0, 1), look)

    def _ask(self, verb: str, path: str, span: tuple[int, int] | None, use: Callable[[Any], Awaitable[Result]]) -> Result:
        """Return `use(reply)` for a GET of a path or of a byte range of it, retried while the server asks to wait."""
        address = self.address(path)
        headers = {"Accept-Encoding": "identity"} | ({} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"})

        async def attempt() -> Result:
            session = await self._filesystem.set_session()
            async with session.get(self._filesystem.encode_url(address), headers=headers) as reply:
                if not (reply.status == 416 and span is not None):
                    _check(reply, address)
                return await use(reply)

        return self._call(verb, path, lambda: cast(Result, sync(self._filesystem.loop, attempt)))


def _check(reply: Any, address: str) -> None:
    """Raise what a status means: `TryLater`, FileNotFoundError, PermissionError, or OSError for another refusal."""
    if reply.status < 400:
        return
    phrases = [status.phrase for status in HTTPStatus if status == reply.status]
    status_text = " ".join([str(reply.status), *phrases])
    if reply.status in _TEMPORARY or reply.status >= 500:
        raise TryLater(status_text, _retry_after_s(reply.headers.get("Retry-After", "")))
    raise OSError(
        _PERMANENT.get(reply.status, errno.EINVAL), status_text, address
    )  # FileNotFoundError, PermissionError and so on, by the number


def _retry_after_s(header: str) -> float:
    """Return the seconds of a Retry-After header, which holds a number or a date."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


async def _read_all(reply: Any) -> bytes:
    return bytes(await reply.read())


async def _read_part(reply: Any, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file from the reply to that range request; fewer where the file ends."""
    if reply.status == 416:
        return b""
    if reply.status == 206:
        data = bytes(await reply.read())
        content_range = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if (
            content_range is None
            or content_range[1] is None
            or int(content_range[1]) != start
            or len(data) != int(content_range[2]) + 1 - start
        ):
            raise TryLater(f"asked for bytes {start} to {end - 1}, got {len(data)} of {reply.headers.get('Content-Range')!r}")
        return data[: end - start]
    pieces, received = list[bytes](), 0
    async for piece in reply.content.iter_chunked(_CHUNK_BYTES):  # the whole file, from a server without ranges: no more than is needed
        pieces.append(piece)
        received += len(piece)
        if received >= end:
            break
    return b"".join(pieces)[start:end]


class _Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the target of a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _names_in(base: str, page: str) -> list[str]:
    """Return the decoded names of the direct entries in a listing, folders with a slash at their end."""
    links = _Links()
    links.feed(page)
    base_url, names = urlsplit(base), dict[str, None]()
    folder = unquote(base_url.path, errors="surrogateescape")
    for target in links.found:
        try:
            target_url = urlsplit(urljoin(base, target))
        except ValueError:  # no address at all
            continue
        path = unquote(target_url.path, errors="surrogateescape")
        has_query = target_url.query or target_url.fragment  # such as the links that sort the listing
        if (
            (target_url.scheme, target_url.netloc) == (base_url.scheme, base_url.netloc)
            and not has_query
            and path.startswith(folder)
            and path != folder
        ):
            names[path[len(folder) :]] = None
    return list(names)
