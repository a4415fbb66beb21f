"""Start Ray or join a cluster, safely: loopback on this machine, or a cluster whose every port asks for a token.

Ray runs the code of whoever reaches its ports. So what this process starts listens on 127.0.0.1 alone, and a cluster with any other address
is joined only under Ray's token authentication, which both sides must have switched on. The price: a cluster on a network that is trusted
needs a token as well. Ray takes 127.0.0.1 for the machine's outer address unless it is told that there is no cluster, by a switch that it
reads at its import (meant for systems with a firewall that asks); the switch is set for each session here.
"""

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..storage.core.cache_home import home_folder
from ..storage.core.errors import BadInput
from .ray_folders import OBJECT_STORE_BYTES, own_sessions, ray_folder, ray_init_folders, sweep_sessions

LOOPBACK = "127.0.0.1"
_ANSWERS_S = 10.0
_CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # where `ray start` leaves the address that "auto" means


@contextlib.contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Yield a running Ray: that of an outer session of this process, the cluster at `address`, or one on this machine alone.

    Several extractions inside one session start it once (some four seconds). Raises `BadInput` when no cluster answers, and when it would
    listen beyond this machine without a token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = cluster_address(address)
    refuse_open_ports(address, os.environ)
    refuse_silence(address, os.environ)
    import ray

    if ray.is_initialized():
        yield ray
        return
    local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "_node_ip_address": LOOPBACK}
    folders = {} if address else ray_init_folders(os.environ)
    here = ray_folder(os.environ)[0]
    before = own_sessions(here)
    try:
        with _kept_sigterm_handler(), _loopback(ray, _is_bound_to_loopback(ray, address)):
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else local | folders))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"no Ray cluster answers at {address or 'this machine'}: {error}{_token_advice(address, os.environ)}") from error
    try:  # Ray takes 127.0.0.1 for this machine's outer address, so what it connected to is looked at as well
        refuse_open_ports(ray.get_runtime_context().gcs_address if address else None, os.environ)
        yield ray
    finally:
        with _kept_sigterm_handler():
            ray.shutdown()
        if not address:
            _remove_sessions(here, own_sessions(here) - before)


def _remove_sessions(folder: Path, ended: set[Path]) -> None:
    """Remove the folders of sessions that have ended, which Ray leaves for ever, and those of processes that were killed a day ago."""
    for session in ended:
        shutil.rmtree(session, ignore_errors=True)
    sweep_sessions(folder)


def cluster_address(address: str | None) -> str | None:
    """Return the address of the cluster: `address`, or RAY_ADDRESS as Ray itself takes it; None is a Ray started on this machine."""
    resolved = address or os.environ.get("RAY_ADDRESS") or None
    return None if resolved == "local" else resolved


def _is_bound_to_loopback(ray: Any, address: str | None) -> bool:
    """Return whether a session's ports are on 127.0.0.1 alone: our own always, a cluster's when it answers there and nowhere else."""
    host, _, port = ("" if address is None else _resolved_address(address, os.environ)).rpartition(":")
    if address is None or not port.isdecimal() or "://" in address:
        return address is None
    if not is_loopback(f"{host}:{port}"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), _ANSWERS_S).close()
    except (OSError, OverflowError):
        return True
    return False


@contextlib.contextmanager
def _loopback(ray: Any, enabled: bool) -> Iterator[None]:
    """Make Ray use 127.0.0.1 as this machine's address, in this process and in those that it starts, or leave it alone."""
    constants, variable = ray._private.ray_constants, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, variable_before = constants.ENABLE_RAY_CLUSTER, os.environ.get(variable)
    if enabled:
        constants.ENABLE_RAY_CLUSTER, os.environ[variable] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if variable_before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = variable_before


def _token_advice(address: str | None, environment: Mapping[str, str]) -> str:
    if address is None or has_token(environment):
        return ""
    return (
        ". A head that `ray start` of Ray 2.60 and later began asks for a token: set RAY_AUTH_MODE=token here as well, with the head's "
        "RAY_AUTH_TOKEN or its ~/.ray/auth_token"
    )


@contextlib.contextmanager
def _kept_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM that Ray replaces at its start and, unknown to Python, removes at its end.

    Ray's own handler exits silently and with another status; without any, a training that follows would die without its checkpoint.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def refuse_open_ports(address: str | None, environment: Mapping[str, str]) -> None:
    """Raise `BadInput` for a cluster beyond loopback unless Ray's token authentication is on and has a token."""
    if address is None or is_loopback(_resolved_address(address, environment)) or has_token(environment):
        return
    raise BadInput(
        f"the Ray cluster at {address} listens beyond this machine, and whoever reaches its ports runs code in it: set RAY_AUTH_MODE=token "
        "and a token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or `ray get-auth-token --generate`) on every node and here, then run this again"
    )


def refuse_silence(address: str | None, environment: Mapping[str, str]) -> None:
    """Raise `BadInput` when nothing listens at a cluster's address: Ray itself would ask again for longer than ten minutes."""
    host, _, port = ("" if address is None else _resolved_address(address, environment)).rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # none, or a form that Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"no Ray cluster answers at {address} ({error}): start one there with `ray start --head`, or leave --address out, "
            "and one is started on this machine"
        ) from error


def _resolved_address(address: str, environment: Mapping[str, str]) -> str:
    """Return the address, that behind "auto" included."""
    if address != "auto":
        return address
    if environment.get("RAY_ADDRESS"):
        return environment["RAY_ADDRESS"]
    try:
        return _CURRENT_CLUSTER.read_text().strip()
    except FileNotFoundError:
        return LOOPBACK  # none at all: ray.init says so
    except OSError as error:
        raise BadInput(
            f"--address auto: {_CURRENT_CLUSTER} cannot be read ({error.strerror}), another user started that cluster; give its HOST:PORT"
        ) from error


def is_loopback(address: str) -> bool:
    """Return whether an address (`host:port`, `[v6]:port`, `ray://host:port`) is this machine's own."""
    host = address.rpartition("://")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may resolve to anything
        return False


def has_token(environment: Mapping[str, str]) -> bool:
    """Return whether Ray will ask for a token, and has one to show."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    if environment.get("RAY_AUTH_TOKEN"):
        return True
    home = environment.get("HOME") or home_folder()
    path = environment.get("RAY_AUTH_TOKEN_PATH") or (home and Path(home) / ".ray" / "auth_token")
    return bool(path) and os.path.isfile(str(path))
