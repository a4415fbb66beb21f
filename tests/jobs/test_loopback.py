"""Where Ray listens: this machine's own sessions on 127.0.0.1 alone, and a head that listens there is joined by that address."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest
from eupe_pipeline.jobs.ray_session import cluster_address

SESSION = """
import socket, sys
from eupe_pipeline.jobs.ray_session import ray_session
with ray_session(sys.argv[1] or None, 1) as ray:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    outer = sys.argv[2]
    reached = socket.socket().connect_ex((outer, int(port))) == 0
    print(host, reached)
"""


def outer_address() -> str:
    """This machine's address as others see it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def run(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=150,
                          env={**kept, **environment}, check=False)  # fmt: skip


def test_a_session_of_this_machine_is_not_reached_by_its_outer_address() -> None:
    done = run(SESSION, "", outer_address())
    assert (done.returncode, done.stdout.split()) == (0, ["127.0.0.1", "False"]), done.stderr


@pytest.mark.long
def test_a_loopback_head_is_joined_by_its_address_and_through_the_environment() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef", "RAY_USAGE_STATS_ENABLED": "0"}
    folder = tempfile.mkdtemp(dir="/tmp")  # a socket's path may not be longer than 107 bytes
    head = f"import sys; from ray.scripts.scripts import main; sys.argv = ['ray', 'start', '--head', '--port={port}', '--num-cpus=1', \
'--include-dashboard=false', '--temp-dir={folder}']; sys.exit(main())"
    started = run(head, **token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    assert started.returncode == 0, started.stderr
    try:
        given = run(SESSION, f"127.0.0.1:{port}", outer_address(), **token)
        assert (given.returncode, given.stdout.split()) == (0, ["127.0.0.1", "False"]), given.stderr
        meant = run(SESSION, "", outer_address(), **token, RAY_ADDRESS=f"127.0.0.1:{port}")
        assert (meant.returncode, meant.stdout.split()) == (0, ["127.0.0.1", "False"]), meant.stderr
        without = run(SESSION, f"127.0.0.1:{port}", outer_address())
        assert "set RAY_AUTH_MODE=token here as well" in without.stderr
    finally:
        subprocess.run(["pkill", "-f", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_an_address_that_is_given_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address("127.0.0.1:1") == "127.0.0.1:1"
    assert cluster_address(None) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address(None) is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address(None) is None
