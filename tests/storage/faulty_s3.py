"""A real S3 server process (moto over HTTP) behind a proxy that fails on demand: errors, resets, cut bodies, lost replies."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED9F3A",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-77aa",
    "AWS_SESSION_TOKEN": "planted-token-1b2c",
}
ERROR_BODY = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>made up</Message></Error>'


@dataclass
class Fault:
    """What happens to one request: answered `status`, cut after `keep` bytes of the body, its reply lost, late, or byte by byte."""

    status: int | None = None
    code: bytes = b"SlowDown"
    keep: int | None = None
    lose_reply: bool = False
    reset: bool = False
    stall_s: float = 0.0
    trickle: bool = False


@dataclass
class FaultyServer:
    """The proxy's address, the faults to come (by method; None lets one request through), the requests seen, and what was sent."""

    url: str
    faults: list[tuple[str, Fault | None]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    """Bytes of all bodies."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, *faults: Fault | None) -> None:
        """Let the next requests of this method fail in this way, one after another."""
        self.faults += [(method, fault) for fault in faults]

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            for place, (wanted, fault) in enumerate(self.faults):
                if wanted == method:
                    del self.faults[place]
                    return fault
        return None


def _handler(server: FaultyServer, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one packet: apart they wait 40 ms for each other (Nagle, delayed acknowledgement)
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
            return True

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = server.next_fault(self.command, self.path)
            if fault is not None and fault.reset:
                self._hang_up()
                return
            if fault is not None and fault.status is not None:
                self._reply(fault.status, {"Content-Type": "application/xml"}, ERROR_BODY % fault.code)
                return
            behind = http.client.HTTPConnection("127.0.0.1", port)
            behind.connect()
            behind.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            behind.request(self.command, self.path, body, dict(self.headers))
            response = behind.getresponse()
            data = response.read()
            behind.close()
            if fault is not None and fault.lose_reply:
                self._hang_up()
                return
            time.sleep(0.0 if fault is None else fault.stall_s)
            trickle = fault is not None and fault.trickle
            self._reply(response.status, dict(response.getheaders()), data, None if fault is None else fault.keep, trickle)

        def _reply(self, status: int, headers: dict[str, str], data: bytes, keep: int | None = None, trickle: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                    self.send_header(name, value)
            server.sent += 0 if self.command == "HEAD" else len(data)
            length = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            for byte in data if trickle else b"":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            self.wfile.write(b"" if trickle else data if keep is None else data[:keep])
            if keep is not None:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward

    return Handler


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the S3 server did not start")


@contextmanager
def running() -> Iterator[FaultyServer]:
    """Start the server and the proxy, stop both at the end."""
    port = _free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = FaultyServer("")
    try:
        _wait_for(port, process)
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server, port))
        proxy.daemon_threads = True
        server.url = f"http://127.0.0.1:{proxy.server_port}"
        serve: Callable[[], None] = proxy.serve_forever
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            proxy.shutdown()
            proxy.server_close()
    finally:
        process.terminate()
        process.wait()
