"""A recorded subset of a dataset's images, which `train --subset` draws from alone.

    subsets/<name>@<digest>/
      identity.json    the dataset, how many images stay, the sha256 of the bits, and what they were chosen by
      images.bits      a bit an image in the dataset's order (bit i % 8 of byte i // 8, lowest first): 1 stays, bits behind the last are 0

A bitmap, because its size is known (1.7 billion images: 212 MB) and no order or repetition has to be checked.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput, CacheDamaged
from ..core.identity import digest, short
from ..objects.content_addressed import check_name, create_set, parsing, read_identity
from ..objects.damaged_files import read_and_check, replace_verified
from ..objects.objects import Objects
from .dataset import ImageDataset

KIND, BITS = "subset", "images.bits"
_FORMAT = 1


def subset_identity(dataset: ImageDataset, stays_N: NDArray[np.bool_], chosen_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a subset; raise `BadInput` for an empty one."""
    if not stays_N.any():
        raise BadInput(f"no image of {dataset.key} would stay in the subset; take another threshold or another test set")
    return {
        "format": _FORMAT,
        "dataset": dataset.digest,
        "images": len(stays_N),
        "kept": int(stays_N.sum()),
        "bits_sha256": hashlib.sha256(to_bits(stays_N)).hexdigest(),
        "chosen_by": dict(chosen_by),
    }


def to_bits(stays_N: NDArray[np.bool_]) -> bytes:
    """Return the content of the bits file."""
    return np.packbits(stays_N, bitorder="little").tobytes()


def bits_file(identity: Mapping[str, Any]) -> tuple[int, str]:
    """Return length and sha256 of the file that an identity describes; raise KeyError, TypeError or ValueError for another thing's."""
    images, kept = int(identity["images"]), int(identity["kept"])
    if identity["format"] != _FORMAT or not 0 < kept <= images:
        raise ValueError("it describes no subset that this version knows")
    return -(-images // 8), str(identity["bits_sha256"])


class ImageSubset:
    """One subset of a store."""

    def __init__(self, objects: Objects, key: str) -> None:
        self.key, self.name = key, key.split("@")[0]
        self._objects, self._prefix = objects, f"subsets/{key}"
        self.identity = read_identity(objects, self._prefix, KIND)
        with parsing(f"{self._prefix}/identity.json"):
            bits_file(self.identity)
            self.dataset_digest = str(self.identity["dataset"])
            self.images, self.kept = int(self.identity["images"]), int(self.identity["kept"])

    def __repr__(self) -> str:
        return f"ImageSubset({self.key!r}, {self.kept} of {self.images} images)"

    @classmethod
    def create(
        cls, objects: Objects, name: str, dataset: ImageDataset, stays_N: NDArray[np.bool_], chosen_by: Mapping[str, Any]
    ) -> "ImageSubset":
        """Publish a subset; an existing one of the same content stays, and is repaired where damaged."""
        identity = subset_identity(dataset, stays_N, chosen_by)
        key, bits = f"{check_name('subset', name)}@{short(digest(identity))}", to_bits(stays_N)
        create_set(objects, f"subsets/{key}", KIND, identity, {BITS: bits})
        where = f"subsets/{key}/{BITS}"
        if read_and_check(objects, where, lambda data: check_bits(data, identity, where))[1]:
            replace_verified(objects, where, bits)
        return cls(objects, key)

    def mask(self) -> NDArray[np.bool_]:
        """Return which images stay, (N,) bool; raise `CacheDamaged` for bits that do not match the identity."""
        where = f"{self._prefix}/{BITS}"
        try:
            data = self._objects.read(where, bits_file(self.identity)[0])
        except FileNotFoundError as error:
            raise CacheDamaged(f"{where} is missing; {self.way_out}") from error
        try:
            check_bits(data, self.identity, where)
        except CacheDamaged as error:
            raise CacheDamaged(f"{error}; {self.way_out}") from error
        return np.unpackbits(np.frombuffer(data, np.uint8), count=self.images, bitorder="little").astype(np.bool_)

    def stays(self) -> NDArray[np.int64]:
        """Return the numbers of the images that stay, ascending."""
        return np.flatnonzero(self.mask()).astype(np.int64)

    def left_out(self) -> NDArray[np.int64]:
        """Return the numbers of the images that do not stay, ascending."""
        return np.flatnonzero(~self.mask()).astype(np.int64)

    @property
    def way_out(self) -> str:
        """The command that writes its bits again."""
        return f"the same `eupe-pipeline features curate … --name {self.name}` writes it again ({self.identity['chosen_by']})"


def check_bits(data: bytes, identity: Mapping[str, Any], where: str) -> None:
    """Raise `CacheDamaged` unless these are the bits that the identity names."""
    length, sha256 = bits_file(identity)
    if len(data) != length or hashlib.sha256(data).hexdigest() != sha256:
        raise CacheDamaged(f"{where} is damaged: length or sha256 differs from identity.json")
