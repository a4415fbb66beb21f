"""Files on a web server: names are what they are called, addresses are encoded, and nothing is believed but what arrives.

A path is the source's address, a slash, and a name as it is written on the server's disk (`100% real.png`); the address of that is encoded
(`100%25%20real.png`), as the links of a listing are. A server may leave out the length, may answer a range with the whole file, may ask for
patience (429, 503, Retry-After), and may end a reply early: ranges are asked for first, and a server without them is copied from, once a
file. 404 and 403 are final; so are other refusals.
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

_PLAIN = "/~!$&'()*+,;=:@"  # what an address holds unencoded
_HALF_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_FINAL = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
_ANSWER_S, _CONNECT_S = 60, 10  # without a byte, and without a connection
_PASSING = (408, 425, 429)  # and all from 500
_MOST_FOLDERS_DEEP = 64
_CHUNK_BYTES = 1 << 20

Result = TypeVar("Result")


class _Probe(NamedTuple):
    """What one byte's request tells of a file: its length, None when nobody says, and whether the server knows ranges."""

    size: int | None
    has_ranges: bool


def is_web(url: str) -> bool:
    """Return whether a URL or path is a web server's."""
    return url.startswith(("http://", "https://"))


class WebFiles(RemoteFiles):
    """The files below one address."""

    def __init__(self, url: str) -> None:
        import aiohttp  # costs a start 0.2 s

        wait = aiohttp.ClientTimeout(total=None, sock_read=_ANSWER_S, sock_connect=_CONNECT_S)
        super().__init__(fsspec.filesystem("https", encoded=True, client_kwargs={"timeout": wait}), url)
        self._root = url.rstrip("/")
        if not urlsplit(self._root).hostname:
            raise BadInput(f"the source {url} names no server; an address is http://SERVER/PATH")

    def address(self, path: str) -> str:
        """Return the encoded address of a path; the source's own may hold encoded letters already."""
        root = quote(_HALF_ENCODED.sub("%25", self._root), safe="%[]" + _PLAIN)
        if not path.startswith(f"{self._root}/"):
            return root
        return f"{root}/{quote(path[len(self._root) + 1 :], safe=_PLAIN, errors='surrogateescape')}"

    def exists(self, path: str) -> bool:
        """Return whether something is there; raise PermissionError for what must not be seen."""
        try:
            self._probe(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Return whether something is there: a web server tells no more."""
        return self.exists(path)

    def ukey(self, path: str) -> str:
        """Return the address: a version is not asked for at each image."""
        return self.address(path)

    def size(self, path: str) -> int:
        """Length in bytes; where nobody says it, it is counted as far as it matters."""
        size = self._probe(path).size
        return len(self.cat_file(path, 0, MAX_FILE_BYTES + 1)) if size is None else size

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end`, or all, whether the server knows ranges or not."""
        if start is None or end is None:
            return self._ask("read", path, None, _whole)
        first, last = start, end

        async def part(reply: Any) -> bytes:
            return await _part(reply, first, last)

        return self._ask("read", path, (first, last), part)

    def open(self, path: str, mode: str = "rb") -> IO[bytes]:
        """Return the file by ranges, or a temporary copy from a server that knows none or says no length."""
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
        """Paths of all files that listings below a folder link to; raise OSError when one of them cannot be read."""
        found, waiting, seen = dict[str, None](), [""], set[str]()
        while waiting:
            folder = waiting.pop()
            seen.add(folder)
            if folder.count("/") > _MOST_FOLDERS_DEEP:
                raise BadInput(f"{self.address(f'{root}/{folder}')} lies {_MOST_FOLDERS_DEEP} folders deep; does a link lead back?")
            base, page = self._listing(f"{root}/{folder}")
            for name in _names_in(base, page):
                path = folder + name
                if name.endswith("/"):
                    waiting += [path] if path not in seen else []
                else:
                    found[f"{root}/{path}"] = None
        return list(found)

    def _listing(self, path: str) -> tuple[str, str]:
        """Return the address that a folder was found at, and its page."""

        async def read(reply: Any) -> tuple[str, str]:
            return str(reply.url), (await reply.read()).decode("utf-8", "replace")

        return self._ask("list", path, None, read)

    def _probe(self, path: str) -> _Probe:
        async def look(reply: Any) -> _Probe:
            found = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
            if reply.status in (206, 416) and found is not None:
                return _Probe(None if found[3] == "*" else int(found[3]), True)
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
    known = [status.phrase for status in HTTPStatus if status == reply.status]
    said = " ".join([str(reply.status), *known])
    if reply.status in _PASSING or reply.status >= 500:
        raise TryLater(said, _patience_s(reply.headers.get("Retry-After", "")))
    raise OSError(_FINAL.get(reply.status, errno.EINVAL), said, address)  # FileNotFoundError, PermissionError and so on, by the number


def _patience_s(said: str) -> float:
    """Seconds of a Retry-After: a number, or a date."""
    if said.strip().isdecimal():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


async def _whole(reply: Any) -> bytes:
    return bytes(await reply.read())


async def _part(reply: Any, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file out of the reply to that range; fewer where the file ends."""
    if reply.status == 416:
        return b""
    if reply.status == 206:
        data = bytes(await reply.read())
        found = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if found is None or found[1] is None or int(found[1]) != start or len(data) != int(found[2]) + 1 - start:
            raise TryLater(f"asked for bytes {start} to {end - 1}, got {len(data)} of {reply.headers.get('Content-Range')!r}")
        return data[: end - start]
    pieces, held = list[bytes](), 0
    async for piece in reply.content.iter_chunked(_CHUNK_BYTES):  # the whole file, from a server without ranges: no more than is needed
        pieces.append(piece)
        held += len(piece)
        if held >= end:
            break
    return b"".join(pieces)[start:end]


class _Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _names_in(base: str, page: str) -> list[str]:
    """Decoded names of what a listing links to directly below itself, folders with a slash at their end."""
    links = _Links()
    links.feed(page)
    here, names = urlsplit(base), dict[str, None]()
    folder = unquote(here.path, errors="surrogateescape")
    for target in links.found:
        try:
            there = urlsplit(urljoin(base, target))
        except ValueError:  # no address at all
            continue
        path = unquote(there.path, errors="surrogateescape")
        is_own = there.query or there.fragment  # such as the links that sort the listing
        if (there.scheme, there.netloc) == (here.scheme, here.netloc) and not is_own and path.startswith(folder) and path != folder:
            names[path[len(folder) :]] = None
    return list(names)
