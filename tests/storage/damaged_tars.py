"""Tars of labelled images in the formats that writers use, and where their headers lie."""

import io
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

LONG = "long-name-" * 12  # beyond the 100 bytes of a header's own name


def picture(seed: int = 0, format: str = "PNG", **options: Any) -> bytes:
    """A small noisy image."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def pack(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT, **fields: Any) -> bytes:
    """A tar of these members in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Pristine(NamedTuple):
    """A good tar, the label of each image, and the bytes at which its blocks of metadata begin."""

    data: bytes
    labels: dict[str, str]
    headers: list[int]

    @property
    def end(self) -> int:
        """Where the zeros that close it begin."""
        return self.headers[-1]


def pristine(format: int, names: tuple[str, ...] = ("0001", "é2", LONG + "3", "a/0004")) -> Pristine:
    """Labelled images, one of them with a long name and one with a letter that is not ASCII; times that PAX writes as fractions."""
    members, labels = {}, {}
    for number, name in enumerate(names):
        members[f"{name}.png"], members[f"{name}.cls"] = picture(number), str(number).encode()
        labels[f"a.tar/{name}.png"] = str(number)
    data = pack(members, format, mtime=1.5)
    headers, at = [], 0
    while data[at : at + 512].strip(b"\0"):
        header = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "surrogateescape")
        headers.append(at)
        body = -(-header.size // 512) * 512
        if header.type in (b"x", b"L"):
            headers += range(at + 512, at + 512 + body, 512)
        at += 512 + body
    return Pristine(data, labels, [*headers, at])


def indexed(store: FeatureStore, source: Path | str, **options: Any) -> tuple[ImageDataset, dict[str, str | None]]:
    """The dataset of a source, and the label of each image by its id."""
    dataset = build_index(store.objects, str(source), "x", **{"max_bad_share": 1.0, "as_version": False, **options})
    names: list[str | None] = [*dataset.label_names, None]  # −1 is the last
    return dataset, dict(zip(dataset.ids(0, len(dataset)), [names[number] for number in dataset.labels()], strict=True))
