"""An S3 server process for benchmarks: moto over HTTP on this machine, as fast as it is or with the link that S3 gives.

moto answers from memory, on a core of its own. Amazon's S3 sends the first byte after tens of milliseconds and gives one connection some
90 MB/s, which is why readers have several. With a `Link` each reply waits and each body is sent at that rate, so that the server's
processor is no bound.

    python -m benchmarks.s3_server --port 5000 [--megabytes-per-second 90 --first-byte-ms 30]
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import s3fs

_PIECE_BYTES = 1 << 20


class Link(NamedTuple):
    """What one connection is given; zeros: all that there is."""

    megabytes_per_second: float = 0.0
    first_byte_ms: float = 0.0


FAST, AS_S3 = Link(), Link(90, 30)


class Throttled:
    """A WSGI application whose replies take as long as a link makes them."""

    def __init__(self, application: Callable[..., Iterable[bytes]], link: Link) -> None:
        self._application, self._link = application, link

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        """Yield the body of a reply in pieces, no faster than the link."""
        body = b"".join(self._application(environ, start_response))
        time.sleep(self._link.first_byte_ms / 1e3)
        began = time.perf_counter()
        for start in range(0, len(body), _PIECE_BYTES):
            yield body[start : start + _PIECE_BYTES]
            sent = min(start + _PIECE_BYTES, len(body))
            time.sleep(max(0.0, began + sent / (self._link.megabytes_per_second * 1e6) - time.perf_counter()))


@contextmanager
def server(link: Link = FAST) -> Iterator[None]:
    """Yield a server of our own, and the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--port={port}", f"--megabytes-per-second={link.megabytes_per_second}", f"--first-byte-ms={link.first_byte_ms}"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.s3_server", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made_up = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({**made_up, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    s3fs.S3FileSystem.clear_instance_cache()  # one of an earlier server is equal to one of this
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--megabytes-per-second", type=float, default=FAST.megabytes_per_second)
    parser.add_argument("--first-byte-ms", type=float, default=FAST.first_byte_ms)
    options = parser.parse_args()
    link = Link(options.megabytes_per_second, options.first_byte_ms)
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    served = application if link == FAST else Throttled(application, link)
    run_simple("127.0.0.1", options.port, served, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
