"""Photos as JPEG bytes of one size, and a folder of many of them: what the pixel benchmarks read.

The photos are a folder's, or twenty from ImageNet (of foolbox's wheel, fetched once into the cache of downloads). Each is cut to 4:3,
resized and encoded (quality 90, colour at half resolution), so that size, kind and number of bytes are ImageNet's.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from eupe_pipeline.pipeline.demo.fetch import Package, fetch
from PIL import Image

IMAGENET_HW = (375, 500)
LABELLED_PHOTOS = Package(
    "pip",
    "foolbox",
    "3.3.4",
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "MIT",
)
"""Twenty photos of ImageNet's validation set, with their labels in their names."""


def jpeg_photos(folder: Path | None, size_hw: tuple[int, int] = IMAGENET_HW, quality: int = 90) -> list[bytes]:
    """Return the photos as JPEGs of that height and width."""
    found = []
    for data in _originals(folder):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image = image if image.width >= image.height else image.transpose(Image.Transpose.ROTATE_90)
        width, height = min(image.width, image.height * 4 // 3), min(image.height, image.width * 3 // 4)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height)).resize(size_hw[::-1], Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=2)
        found.append(buffer.getvalue())
    return found


def _originals(folder: Path | None) -> list[bytes]:
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    with zipfile.ZipFile(fetch(LABELLED_PHOTOS)) as wheel:
        return [wheel.read(name) for name in sorted(wheel.namelist()) if "imagenet" in name and name.endswith(".jpg")]


def write_many(photos: list[bytes], folder: Path, count: int) -> None:
    """Write `count` different files: bytes behind a JPEG's end, which no decoder reads, tell copies of a photo apart."""
    folder.mkdir(parents=True)
    for number in np.arange(count).tolist():
        (folder / f"{number:05}.jpg").write_bytes(photos[number % len(photos)] + number.to_bytes(4, "big"))
