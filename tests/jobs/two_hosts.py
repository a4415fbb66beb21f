"""Two hosts on this machine, each a network namespace with an address of its own, that reach each other and nothing else.

Needs root and `ip netns`; both share this machine's files, as cluster nodes share a store.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

ADDRESSES = ("10.231.77.1", "10.231.77.2")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """The names of two hosts; whatever runs on them ends with the context."""
    if os.geteuid() or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root and the commands `ip` and `unshare`")
    tag = secrets.token_hex(3)
    names = f"eupe-1-{tag}", f"eupe-2-{tag}"
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine gives no network namespaces: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            plug_in(name)
        yield names
    finally:
        for name in names:
            kill_all(name)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def pids_of(host: str) -> list[int]:
    """Every process of a host."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def kill_all(host: str) -> None:
    """Send SIGKILL to every process of a host."""
    for pid in pids_of(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cut_off(host: str) -> None:
    """Lose a host: first its network, then all that runs there."""
    ip("-n", host, "link", "set", "cable", "down")
    kill_all(host)


def plug_in(host: str) -> None:
    """Connect a host."""
    ip("-n", host, "link", "set", "cable", "up")
