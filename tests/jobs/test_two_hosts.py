"""A Ray head on one host and a worker on another, tokens on every port: an extraction over both."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from .two_hosts import ADDRESSES, pids_of

HEAD, WORKER = ADDRESSES
EXTRACT = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"
NODE = ["--num-cpus=1", f"--object-store-memory={80 << 20}", "--disable-usage-stats", "--block"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def actors_of(host: str) -> int:
    """Extracting actors of a namespace."""
    count = 0
    for pid in pids_of(host):
        with contextlib.suppress(OSError):
            count += Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Actor")
    return count


class Started:
    """A command in a namespace, and the file that has all it says."""

    def __init__(self, host: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            words = ["ip", "netns", "exec", host, *words]
            self.process = subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def said(self, text: str) -> "Started":
        """Itself as soon as it has said something; fails with all that it said when it ends before."""
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        return self


def test_an_extraction_over_two_hosts_does_every_image_once(hosts: tuple[str, str], photos: Any) -> None:
    store, options, root = photos
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # beside other tests, Ray's 15 would let the actors wait
    }  # fmt: skip
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *NODE]
    sockets = tempfile.mkdtemp(prefix="eupe-")  # short, as sockets want it; and not where other clusters of this machine leave theirs
    first = [*ray, "--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false", f"--temp-dir={sockets}"]
    second = [*ray, f"--node-ip-address={WORKER}", f"--address={HEAD}:6379"]
    head = Started(hosts[0], first, environment, root / "head.log").said("Ray runtime started")
    worker = Started(hosts[1], second, environment, root / "worker.log").said("Ray runtime started")

    words = [sys.executable, "-c", EXTRACT, "extract-features", "--store", store.url, "--data", "photos", "--views", "2", "--json"]
    words += ["--teacher", options.teachers[0].name, "--shard-images", "1", "--statistics-batches", "40", "--address", f"{HEAD}:6379"]
    without = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
    refused = Started(hosts[0], words, without, root / "refused.log")
    assert refused.process.wait(60) == 2
    assert "set RAY_AUTH_MODE=token" in refused.log.read_text()

    extraction, at_work = Started(hosts[0], words, environment, root / "extraction.log"), dict.fromkeys(hosts, 0)
    while extraction.process.poll() is None:
        at_work = {host: max(most, actors_of(host)) for host, most in at_work.items()}
        time.sleep(0.1)
    assert extraction.process.returncode == 0, extraction.log.read_text()
    assert at_work == dict.fromkeys(hosts, 1)
    reader = store.features(store.list_features()[0])
    assert reader.complete
    assert reader.rows == 48
    assert len(store.objects.names(f"features/{reader.key}/commits")) == 24
    for one in (worker, head):
        one.process.terminate()
        one.process.wait(30)
    shutil.rmtree(sockets, ignore_errors=True)
