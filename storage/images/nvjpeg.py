"""JPEG bytes to RGB pixels by nvJPEG through torchvision, on a CUDA device: for machines with few cores beside their GPU.

Threads that need an image at the same time share a call: while one batch is on the device, the next gathers. The pixels come back to the
host, where crops are cut and their digests are taken as those of any decoder. They are not libjpeg-turbo's, so views of them are sets of
their own, whose identity names torchvision, CUDA and the GPU; another that gives other pixels is noticed by the digests. What nvJPEG would
refuse or half decode (colours other than YCbCr, a file that is cut off, a kind that it does not know) is left to Pillow. A device that
fails, or has no memory left, is an error and never Pillow's turn: which decoder an image has must not depend on the day.
Limits: images cross from the device whole, and decoding is that of the process's first device.
"""

import importlib.metadata
import io
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

from PIL import Image, JpegImagePlugin

from ..core.choices import Orientation
from ..core.errors import BadInput
from ..sources.decode import MAX_FILE_BYTES, MAX_PIXELS, BadImage, Pixels, orient_jpeg

LIBRARY = "torchvision"
LARGEST_BATCH = 64
_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
# nvJPEG says of a file that it is bad, incomplete, or of a kind that it does not decode (two statuses).
_FAULT_OF_A_FILE = re.compile(r"(image info|decode batch|jpeg stream): (3|4|9|10)\b|Unknown chroma subsampling")


@cache
def flaw() -> str:
    """Return why nvJPEG cannot decode in this process, and what would help; "" where it can."""
    import torch

    if not torch.cuda.is_available():
        return "nvJPEG decodes on a CUDA device, and torch finds none here"
    probe = io.BytesIO()
    Image.new("RGB", (16, 16)).save(probe, "JPEG")
    try:
        _on_device([probe.getvalue()])
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"{LIBRARY} does not decode on the device ({error}); install the build of {LIBRARY} that matches that of torch"
    return ""


@cache
def described() -> dict[str, str]:
    """Return library, version and mode, for the identity of views; raise `BadInput` where it cannot decode."""
    import torch

    if why := flaw():
        raise BadInput(f"JPEGs cannot be decoded by nvJPEG: {why}; or leave --renderer nvjpeg out")
    mode = f"nvJPEG of CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    return {"library": LIBRARY, "version": importlib.metadata.version(LIBRARY).partition("+")[0], "mode": mode}


def decode_jpeg(data: bytes, orientation: Orientation) -> Pixels | None:
    """Return a JPEG as (height, width, 3) uint8 RGB, oriented; None for what Pillow should judge; raise RuntimeError of a device."""
    if not _is_ordinary(data):
        return None
    pixels = _calls.decode(data)
    try:
        return None if pixels is None else orient_jpeg(pixels, data, orientation)
    except BadImage:
        return None


def _is_ordinary(data: bytes) -> bool:
    """Return whether it is a whole JPEG of three components, luma and two of colour, within the limits."""
    if not data.startswith(_START) or len(data) > MAX_FILE_BYTES or not data.rstrip(b"\0").endswith(_END):
        return False
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Exception:  # noqa: BLE001 - Pillow raises many kinds on hostile headers, and will say what is wrong
        return False
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    components = [component[0] for component in image.layer]
    return components == [1, 2, 3] and image.info.get("adobe_transform", 1) == 1 and image.width * image.height <= MAX_PIXELS


class _SharedCalls:
    """Decodes for many threads, in calls of up to `LARGEST_BATCH` files each."""

    def __init__(self) -> None:
        self._list, self._device = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[bytes, Future[Pixels | None]]] = []

    def decode(self, data: bytes) -> Pixels | None:
        """Return a file's pixels, decoded by this thread with those that wait, or by another that had the device before."""
        mine: Future[Pixels | None] = Future()
        with self._list:
            self._waiting.append((data, mine))
        with self._device:
            while not mine.done():
                with self._list:
                    batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
                try:
                    for (_, future), pixels in zip(batch, _decoded([file for file, _ in batch]), strict=True):
                        future.set_result(pixels)
                except BaseException as error:  # noqa: BLE001 - of the device or of this thread's end: whoever waits must hear of it
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
        return mine.result()


_calls = _SharedCalls()


def _decoded(files: Sequence[bytes]) -> list[Pixels | None]:
    """Return each file's pixels, None for one that nvJPEG refuses: such a one fails a whole call, whose files are then tried alone."""
    try:
        return list(_on_device(files))
    except RuntimeError as error:
        if not _FAULT_OF_A_FILE.search(str(error)):
            raise
    return [None] if len(files) == 1 else [pixels for file in files for pixels in _decoded([file])]


def _on_device(files: Sequence[bytes]) -> list[Pixels]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    with torch.cuda.stream(_stream()):  # not the stream of the models, behind whose work the copies would wait
        images: list[Any] = decode_jpeg(tensors, ImageReadMode.RGB, "cuda")
        return [image.permute(1, 2, 0).contiguous().cpu().numpy() for image in images]


@cache
def _stream() -> Any:
    import torch

    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
