"""`doctor`: what a bug report needs and what a newcomer trips over: versions, devices, memory, disk rate, known traps with their cure.

The disk's rate is measured, not looked up: PROBE_BYTES are written with fsync and read back in a temporary file of the given folder, which
is removed. The read bypasses the page cache where the system lets it (posix_fadvise); a file system that ignores this shows memory's rate.
Ray is only looked at, never started. A check that fails is a finding: the others follow all the same.
"""

import getpass
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...storage.core.cache_home import cache_home, can_be_written, home_folder, weights_folder
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.objects.atomic_files import translate_os_errors
from ...storage.objects.exclusive_create import publish
from .known_holes import installed_holes

PACKAGES = ("eupe-pipeline", "torch", "timm", "torchvision", "transformers", "ray", "zarr", "numpy", "pillow", "pyarrow", "safetensors")
PROBE_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_WANTED_BYTES = 2 << 30


def examine(*, folder: Path, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return the findings by topic; `traps` is empty on a healthy machine. A check that fails gives its reason under "failed"."""
    checks: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "machine": machine,
        "user": user,
        "devices": devices,
        "disk": lambda: disk(folder),
        "publishing": lambda: publishing(folder),
        "weights": weights,
        "torchvision": torchvision,
        "plug_ins": plug_ins,
        "traps": lambda: traps(folder),
    }
    return {topic: _guarded(check) for topic, check in checks.items()}


def _guarded(check: Callable[[], Any]) -> Any:
    """Return what a check finds, or why it failed: a user who runs the doctor has a broken machine already."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # of any library on a machine that is not as it should be
        return {"failed": f"{type(error).__name__}: {error}"}


def user() -> dict[str, Any]:
    """Return who runs this, where the home is, and where downloads and results are kept."""
    home = home_folder()
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"{os.getuid()}, who has no entry in the user database"
    return {"name": name, "home": "none" if home is None else str(home), "cache": str(cache_home())}


def publishing(folder: Path) -> str:
    """Return how a store in a folder would publish files without replacing any."""
    with translate_os_errors(folder, 0), tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-doctor-") as probe_folder:
        new = Path(probe_folder) / "new"
        new.write_bytes(b"")
        try:
            os.link(new, Path(probe_folder) / "linked")
        except OSError as error:
            publish(new, Path(probe_folder) / "renamed")
            return f"exclusive rename (no hard links: {error.strerror})"
    return "hard links"


def versions() -> dict[str, str]:
    """Return the installed version of each package that results depend on."""
    versions_of = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_of[package] = version(package)
        except PackageNotFoundError:
            versions_of[package] = "not installed"
    return versions_of


def machine() -> dict[str, Any]:
    """Return system, usable cores and memory in GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "cores": cores, "memory_gb": round(total / 1e9, 1), "ray_address": os.environ.get("RAY_ADDRESS")}


def devices() -> dict[str, Any]:
    """Return what torch computes on: CUDA devices with memory in GB and bf16, threads."""
    import torch

    cuda = {}
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        cuda[str(number)] = {
            "name": facts.name,
            "memory_gb": round(facts.total_memory / 1e9, 1),
            "capability": f"{facts.major}.{facts.minor}",
        }
    return {"torch_build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU", "threads": torch.get_num_threads(), "cuda": cuda}


def disk(folder: Path) -> dict[str, Any]:
    """Return free space in GB and the measured write and read rates in MB/s of a folder."""
    block = os.urandom(BLOCK_BYTES)
    count = PROBE_BYTES // BLOCK_BYTES
    with translate_os_errors(folder, PROBE_BYTES), tempfile.TemporaryFile(dir=folder, prefix=".tmp-doctor-") as file:
        descriptor = file.fileno()
        began = time.perf_counter()
        for _ in range(count):
            os.write(descriptor, block)
        os.fsync(descriptor)
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        reading = time.perf_counter()
        for number in range(count):
            os.pread(descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
        read = time.perf_counter()
    return {
        "folder": str(folder.absolute()),
        "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "write_mb_per_s": round(PROBE_BYTES / 1e6 / (written - began)),
        "read_mb_per_s": round(PROBE_BYTES / 1e6 / (read - reading)),
    }


def weights() -> dict[str, Any]:
    """Return where teachers' weights are looked for and what lies there, in MB."""
    folder = weights_folder()
    sizes = {path.name: f"{path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.glob("*.safetensors"))}
    return {"folder": str(folder), "files": sizes}


def torchvision() -> str:
    """Return in words whether torchvision's compiled operators load, and the cure when they do not."""
    from ...teachers.runtime.torchvision_guard import status

    return status()


def plug_ins() -> dict[str, dict[str, str]]:
    """Return what installed packages add to our tables: whose it is, or why it cannot be used."""
    from ...student.export.formats import FORMATS
    from ...teachers.encoders.build import FAMILIES
    from ...teachers.registry.table import TEACHERS

    return {table.group: table.plugins() for table in (TEACHERS, FAMILIES, FORMATS)}


def traps(folder: Path | None = None) -> list[str]:
    """Return the known traps that this machine is in, each with its cure."""
    from ...jobs.ray_folders import ray_folder, shared_memory_flaw

    findings = [f"{text}: commands refuse to start" for text in installed_holes().values()]
    if sys.platform == "linux" and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).total < SHARED_MEMORY_WANTED_BYTES:
        findings.append(f"{SHARED_MEMORY} is smaller than 2 GB: Ray falls back to disk; start the container with --shm-size=4g")
    if sys.platform == "linux" and (flaw := shared_memory_flaw()):
        findings.append(f"{flaw}: Ray keeps its objects on disk, which is slower")
    try:
        other, why = ray_folder(os.environ)
        findings += [f"{why}: Ray keeps its files in {other}; set RAY_TMPDIR to a short folder of your own"] if why else []
    except BadInput as error:
        findings.append(str(error))
    home = home_folder()
    if home is None or not can_be_written(home):
        what = "this user has no home folder" if home is None else f"the home folder {home} cannot be written"
        findings.append(f"{what}: set EUPE_PIPELINE_HOME to a folder for weights, downloads and results")
    if folder is not None and not can_be_written(folder):
        findings.append(f"{folder.absolute()} cannot be written: a store there can be read and trained from, without leases")
    return findings
