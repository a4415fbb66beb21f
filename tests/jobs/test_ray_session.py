"""Ray's ports: loopback unless told, and beyond it only with a token."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from eupe_pipeline.jobs.ray_session import has_token, is_loopback, ray_session, refuse_open_ports, refuse_silence
from eupe_pipeline.storage.core.errors import BadInput

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("address", "environment", "refused"),
    [
        pytest.param("127.0.0.1:6379", {}, False, marks=pytest.mark.fault(23, "right")),
        pytest.param("127.0.0.1:6379", TOKEN, False, marks=pytest.mark.fault(23, "right")),
        pytest.param("10.1.2.3:6379", TOKEN, False, marks=pytest.mark.fault(23, "right")),
        pytest.param("10.1.2.3:6379", {}, True, marks=pytest.mark.fault(23, "detected")),
    ],
)
def test_the_four_cells(address: str, environment: dict[str, str], refused: bool) -> None:
    if not refused:
        refuse_open_ports(address, environment)
        return
    with pytest.raises(BadInput, match=r"10\.1\.2\.3:6379 listens beyond this machine.*RAY_AUTH_MODE=token"):
        refuse_open_ports(address, environment)


def test_without_an_address_nothing_listens_beyond_loopback() -> None:
    refuse_open_ports(None, {})


def test_auto_means_what_ray_means_by_it() -> None:
    with pytest.raises(BadInput):
        refuse_open_ports("auto", {"RAY_ADDRESS": "10.0.0.1:6379"})
    refuse_open_ports("auto", {"RAY_ADDRESS": "127.0.0.1:6379"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "ray://127.0.0.1:10001", "[::1]:1", "127.0.0.1"])
def test_this_machine_alone(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "head.example:6379", "ray://10.0.0.1:1", "[fe80::1]:1", "localhost.example:1", ""]
)
def test_anything_else_is_beyond_it(address: str) -> None:
    assert not is_loopback(address)


def test_a_mode_without_a_token_is_no_token_and_a_token_without_the_mode_neither(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert not has_token({**home, "RAY_AUTH_MODE": "token"})
    assert not has_token({**home, "RAY_AUTH_TOKEN": "x"})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert has_token({**home, "RAY_AUTH_MODE": "token"})
    assert not has_token({**home, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_a_cluster_that_is_not_there_is_said_to_be_so_at_once(address: str) -> None:
    with pytest.raises(BadInput, match=r"no Ray cluster answers at .*:1 .*ray start --head"), ray_session(address):
        pass


def test_what_listens_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refuse_silence(f"127.0.0.1:{server.getsockname()[1]}", {})
    refuse_silence(None, {})
    refuse_silence("auto", {"RAY_ADDRESS": ""})


def test_a_stop_is_ours_inside_a_session_and_after_it() -> None:
    script = (
        "import signal\n"
        "from eupe_pipeline.jobs.ray_session import ray_session\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "def stopped():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        return True\n"
        "with ray_session(None, 1):\n"
        "    inside = stopped()\n"
        "print(inside, stopped())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr
