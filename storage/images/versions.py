"""The versions of a dataset: a source that grew makes a new dataset that continues an older one, row by row.

    identity.json      "extends": one entry for each earlier version, the oldest first; "removed": of images that left the source
    removed.bits       a bit an image in the dataset's order (bit i % 8 of byte i // 8, lowest first): 1 was removed

A new version has the rows of the one before first and in their order, then the new images. So a row keeps its number, a label its number,
and a complete shard its images. A removed image keeps its row and its number; nobody reads its bytes or trains on it. Every earlier version
is listed, not the last alone, so that a store that lacks some of them still tells old from new.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheDamaged

REMOVED_BITS = "removed.bits"
REMOVED = "removed from the source"
"""Why an image has no tokens in a shard that was computed after it was removed."""


class Earlier(NamedTuple):
    """An earlier version of a dataset: its digest, its images, and how many of them carry an orientation other than 1."""

    digest: str
    images: int
    oriented: int


def earlier_versions(described: Mapping[str, Any]) -> tuple[Earlier, ...]:
    """Return the earlier versions that a description of a dataset lists; raise KeyError, TypeError or ValueError for what cannot be."""
    versions = tuple(Earlier(**entry) for entry in described.get("extends", ()))
    images = [version.images for version in versions]
    if not all(type(version.digest) is str and type(version.oriented) is int and type(version.images) is int for version in versions):
        raise ValueError("an earlier version with a value of another type")
    if images != sorted(images) or not all(0 < count <= described["images"] for count in images):
        raise ValueError(f"earlier versions of {images} images")
    if len({version.digest for version in versions} | {described["digest"]}) != len(versions) + 1:
        raise ValueError("a version that extends itself")
    return versions


def removed_file(described: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return length and sha256 of a dataset's `removed.bits`, None where no image was removed; raise as `earlier_versions`."""
    if "removed" not in described:
        return None
    images, sha256 = described["removed"]["images"], described["removed"]["bits_sha256"]
    if type(images) is not int or type(sha256) is not str or not 0 < images < described["images"]:
        raise ValueError(f"{images} of {described['images']} images removed")
    return -(-described["images"] // 8), sha256


def describe_removed(removed_N: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the entry of `identity.json` for removed images."""
    return {"images": int(removed_N.sum()), "bits_sha256": hashlib.sha256(removed_bits(removed_N)).hexdigest()}


def removed_bits(removed_N: NDArray[np.bool_]) -> bytes:
    """Return the content of `removed.bits`."""
    return np.packbits(removed_N, bitorder="little").tobytes()


def check_removed_bits(data: bytes, described: Mapping[str, Any], where: str) -> None:
    """Raise `CacheDamaged` unless these are the bits that the dataset's description names."""
    expected = removed_file(described)
    if expected is None or len(data) != expected[0] or hashlib.sha256(data).hexdigest() != expected[1]:
        raise CacheDamaged(f"{where} is damaged: length or sha256 differs from identity.json")


def without_earlier(versions_of: Mapping[str, tuple[str, tuple[Earlier, ...]]]) -> list[str]:
    """Return the keys (→ digest, earlier versions) of datasets that no other one of them extends, in their order."""
    extended = {version.digest for _, versions in versions_of.values() for version in versions}
    return [key for key, (full_digest, _) in versions_of.items() if full_digest not in extended]
