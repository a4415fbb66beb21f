"""Decoders and resizers that could make views: each as one function of the same arguments; a library that is not there is left out.

A decoder takes a JPEG's bytes and returns (height, width, 3) uint8 RGB. A resizer takes a crop and a side and returns (side, side, 3). All
use one thread as far as they let themselves be told.
"""

import ctypes.util
import importlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.views import torch_resize
from eupe_pipeline.storage.views.view_spec import resize
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Decode = Callable[[bytes], Pixels]
Resize = Callable[[Pixels, int], Pixels]


def decoders() -> dict[str, Decode]:
    """Return the decoders that are installed, by name; Pillow first, against which the others are compared."""
    return {"pillow": lambda data: decode_image(data, where="a photo"), **_those_that_run(_decoders())}


def resizers() -> dict[str, Resize]:
    """Return the resizers that are installed, by name; Pillow first."""
    return {"pillow": lambda crop, side: resize(crop, False, side), **_those_that_run(_resizers())}


def _those_that_run(makers: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
    found = {}
    for name, make in makers:
        try:
            found[name] = make()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            print(f"pixels  {name} is left out: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return found


def _decoders() -> Iterator[tuple[str, Callable[[], Decode]]]:
    yield "simplejpeg", _simplejpeg
    yield "simplejpeg, fast DCT and upsampling", lambda: _simplejpeg(fastdct=True, fastupsample=True)
    yield "pyturbojpeg", _pyturbojpeg
    yield "opencv", _opencv_decoder
    yield "kornia-rs", _kornia_decoder
    yield "torchvision", _torchvision


def _simplejpeg(**options: bool) -> Decode:
    import simplejpeg

    return lambda data: np.asarray(simplejpeg.decode_jpeg(data, **options))


def _pyturbojpeg() -> Decode:
    module = importlib.import_module("turbojpeg")
    library = module.TurboJPEG(ctypes.util.find_library("turbojpeg"))
    return lambda data: np.asarray(library.decode(data, pixel_format=module.TJPF_RGB))


def _opencv() -> Any:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return cv2


def _opencv_decoder() -> Decode:
    cv2 = _opencv()
    return lambda data: np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


def _kornia() -> Any:
    return importlib.import_module("kornia_rs")


def _kornia_decoder() -> Decode:
    decode = _kornia().io.decode_image_jpegturbo
    return lambda data: np.asarray(decode(data, "rgb"))


def _torchvision() -> Decode:
    from torchvision.io import decode_jpeg

    decode_jpeg(torch.frombuffer(bytearray(_smallest_jpeg()), dtype=torch.uint8))  # an import alone does not say that it runs
    return lambda data: np.asarray(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0))


def _smallest_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _resizers() -> Iterator[tuple[str, Callable[[], Resize]]]:
    yield "torch", _torch
    yield "torch, float32", _torch_float
    yield "opencv, cubic (not antialiased)", lambda: _opencv_resizer("INTER_CUBIC")
    yield "opencv, area", lambda: _opencv_resizer("INTER_AREA")
    yield "kornia-rs", _kornia_resizer
    yield "fast_image_resize (cykooz-resizer)", _fast_image_resize


def _torch() -> Resize:
    memory = np.empty((4096, 4096, 3), np.uint8)  # as a batch's: it is there before

    def resized(crop: Pixels, side: int) -> Pixels:
        out = memory.reshape(-1)[: side * side * 3].reshape(side, side, 3)
        torch_resize.resize_into(out, crop, False, "bicubic")
        return out

    return resized


def _torch_float() -> Resize:
    def resized(crop: Pixels, side: int) -> Pixels:
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
        found = torch.nn.functional.interpolate(image, size=(side, side), mode="bicubic", antialias=True)
        return found.round_().clamp_(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()

    return resized


def _opencv_resizer(mode: str) -> Resize:
    cv2 = _opencv()
    return lambda crop, side: np.asarray(cv2.resize(crop, (side, side), interpolation=getattr(cv2, mode)))


def _kornia_resizer() -> Resize:
    resize_image = _kornia().imgproc.resize
    return lambda crop, side: np.asarray(resize_image(crop, (side, side), "bicubic", True))


def _fast_image_resize() -> Resize:
    library = importlib.import_module("cykooz_resizer")
    options = library.ResizeOptions(resize_alg=library.ResizeAlg.convolution(library.FilterType.catmull_rom), use_alpha=False)

    def resized(crop: Pixels, side: int) -> Pixels:
        out = library.ImageData(side, side, library.PixelType.U8x3)
        library.Resizer().resize(library.ImageData(crop.shape[1], crop.shape[0], library.PixelType.U8x3, crop.tobytes()), out, options)
        return np.frombuffer(out.get_buffer(), np.uint8).reshape(side, side, 3)

    return resized
