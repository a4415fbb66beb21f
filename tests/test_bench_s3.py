"""The S3 server of the benchmarks gives a connection no more than its link, and every byte."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.s3_server import Link, Throttled


def test_a_body_comes_whole_after_the_first_byte_s_latency_and_at_the_link_s_rate() -> None:
    body = np.random.default_rng(0).bytes(5_000_001)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body[:7], body[7:]]

    replies: list[str] = []
    start = time.perf_counter()
    found = b"".join(Throttled(application, Link(50, 60))({}, lambda status, headers: replies.append(status)))
    assert time.perf_counter() - start >= 0.06 + 5_000_001 / 50e6
    assert (found, replies) == (body, ["200 OK"])
