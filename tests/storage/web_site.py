"""A real web server over a folder that fails on demand: statuses, resets, cut bodies, without ranges or lengths."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Answer:
    """What becomes of one request: a status with headers, a body cut after `keep` bytes, or a reset."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    keep: int | None = None
    reset: bool = False


@dataclass
class Site:
    """The address, what it does, and what was asked of it."""

    folder: Path
    url: str = ""
    has_ranges: bool = True
    has_lengths: bool = True
    faults: dict[str, list[Answer]] = field(default_factory=dict)  # by the decoded path's end; taken one after another
    always: dict[str, Answer] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, path: str) -> Answer | None:
        with self.lock:
            self.seen.append(path)
            for end, faults in self.faults.items():
                if path.endswith(end) and faults:
                    return faults.pop(0)
            return next((answer for end, answer in self.always.items() if path.endswith(end)), None)


def _handler(site: Site) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: object, **values: object) -> None:
            super().__init__(*arguments, directory=str(site.folder), **values)  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def do_GET(self) -> None:
            fault = site.next_fault(unquote(self.path))
            if fault is not None and fault.reset:
                self._hang_up()
            elif fault is not None and fault.status is not None:
                self._send(fault.status, fault.headers, b"no")
            elif os.path.isdir(self.translate_path(self.path)):
                super().do_GET()
            else:
                self._file(None if fault is None else fault.keep)

        def _file(self, keep: int | None) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self._send(404, {}, b"no")
                return
            data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked is None or not site.has_ranges:
                self._send(200, {}, data, keep)
                return
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
            if start >= len(data):
                self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            else:
                self._send(206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop], keep)

        def _send(self, status: int, headers: dict[str, str], data: bytes, keep: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if site.has_lengths:
                self.send_header("Content-Length", str(len(data)))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data if keep is None else data[:keep])
            if keep is not None or not site.has_lengths:
                self._hang_up()

    return Handler


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Serve a folder."""
    site = Site(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(site)) as server:
        server.daemon_threads = True
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
