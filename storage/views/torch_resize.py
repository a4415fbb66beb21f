"""Resize crops by torch's uint8 kernels: the antialiased filters that Pillow has, in a quarter of its time, into memory that is there.

It is the only file of this room that imports torch, and only when a view is rendered by it: an extraction or a training, which have torch
anyway. The kernel computes in whole numbers and gives the same bytes by AVX-512, AVX2 and none of them; it uses the calling thread alone.
Rows are filtered first, then columns, each rounded to 8 bits, as Pillow does it; Pillow 13 takes the other order for tall crops, which is
the larger part of the difference (`make bench-pixels` has the figures). The operators are called by their ATen names because
`torch.nn.functional.interpolate`, which calls them, cannot write into memory of the caller's; a test compares the two.
Axes: crop and out are (height, width, 3).
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
LIBRARY = "torch"
MODE = "uint8 on the CPU, antialiased, rows first"
_ALONE = 32768  # elements that torch handles in the calling thread
_PROBE_SIZES = (((61, 83), (32, 32)), ((90, 40), (24, 31)), ((19, 23), (48, 40)))  # made smaller, tall, made larger


def resize_into(out: Pixels, crop: Pixels, flip: bool, interpolation: str) -> None:
    """Write the crop, stretched to the size of `out`, then mirrored when `flip`."""
    whole = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)  # the kernel writes as if it were, and beside it
    source = crop if crop.flags.writeable else crop.copy()  # of others torch warns
    _operators()[interpolation](_as_image(source), out=_as_image(whole))
    if flip:
        _mirror(whole)
    if whole is not out:
        out[:] = whole


def _as_image(pixels: Pixels) -> Any:
    """Return the same memory as a (1, 3, height, width) tensor whose channels are the innermost axis."""
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])


def _mirror(pixels: Pixels) -> None:
    """Turn right and left around in place, by torch: numpy copies three bytes at a time, in six times as long.

    A few rows at once, because torch would wake its other threads for more, which then spin beside ours.
    """
    import torch

    step = max(1, _ALONE // pixels[0].size)
    for start in range(0, len(pixels), step):
        rows = pixels[start : start + step]
        np.copyto(rows, torch.from_numpy(rows).flip(1).numpy())


@cache
def _operators() -> dict[str, Callable[..., Any]]:
    import torch

    aten = torch.ops.aten

    def antialiased(operator: Any) -> Callable[..., Any]:
        return lambda image, out: operator(image, out.shape[-2:], False, None, None, out=out)

    return {
        "bicubic": antialiased(aten._upsample_bicubic2d_aa.out),
        "bilinear": antialiased(aten._upsample_bilinear2d_aa.out),
        "nearest": lambda image, out: aten._upsample_nearest_exact2d.out(image, out.shape[-2:], None, None, out=out),
    }


def described() -> dict[str, str]:
    """Return library, version, mode and what it does to made-up pictures, for the identity of views."""
    return {"library": LIBRARY, "version": version(), "mode": MODE, "check": check()}


@cache
def version() -> str:
    """Return torch's version without the part that says for which devices it was built: the kernels for the CPU are the same."""
    return importlib.metadata.version(LIBRARY).partition("+")[0]


class Probe(NamedTuple):
    """A made-up picture (height, width, 3) and what it is resized to."""

    picture: Pixels
    size: tuple[int, int]
    interpolation: str


def probes() -> Iterator[Probe]:
    """Yield what a resizer is known by."""
    for (height, width), size in _PROBE_SIZES:
        y, x, channel = np.ogrid[:height, :width, :3]
        picture = ((x * x * 3 + y * 11 + x * y + channel * 50) % 256).astype(np.uint8)
        yield from (Probe(picture, size, interpolation) for interpolation in _operators())


def digest_of(resized: Iterable[Pixels]) -> str:
    """Return the digest of the probes as somebody resized them: equal digests mean equal pixels, whatever the versions are."""
    hasher = xxhash.xxh3_64()
    for pixels in resized:
        hasher.update(pixels.tobytes())
    return hasher.hexdigest()


@cache
def check() -> str:
    """Return the digest of what the probes are resized to here."""
    return digest_of(_resized(probe) for probe in probes())


def _resized(probe: Probe) -> Pixels:
    out = np.empty((*probe.size, 3), np.uint8)
    resize_into(out, probe.picture, False, probe.interpolation)
    return out
