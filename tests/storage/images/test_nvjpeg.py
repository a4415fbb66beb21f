"""What is decided around nvJPEG, with a decoder on the processor in its place; `tests/test_gpu.py` has the real one decode."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images import nvjpeg
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.nvjpeg import decode_jpeg
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.renderer_choice import choose_renderer
from eupe_pipeline.storage.views.renderers import PILLOW, Renderer, fast, on_nvjpeg
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Input, ViewSpec
from PIL import Image

from .test_fast_jpeg import cmyk, jpeg, kinds, picture, turned


class Device:
    """Stands for torchvision's decoder on a GPU: takes lists alone, fails a whole list for one file, and says nvJPEG's status."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.refused: dict[bytes, str] = {}
        self.gate = threading.Event()
        self.gate.set()

    def decode_jpeg(self, files: list[torch.Tensor], mode: str, device: str) -> list[torch.Tensor]:
        assert (mode, device) == ("RGB", "cuda")
        assert all(file.dtype == torch.uint8 and file.ndim == 1 and len(file) for file in files)
        self.gate.wait()
        self.batches.append(len(files))
        data = [file.numpy().tobytes() for file in files]
        for one in data:
            if one in self.refused:
                raise RuntimeError(f"Error while decoding JPEG images: {self.refused[one]}")
        pixels = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in data]
        return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in pixels]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A process with a GPU."""
    found, library = Device(), ModuleType("torchvision.io")
    library.decode_jpeg, library.ImageReadMode = found.decode_jpeg, type("ImageReadMode", (), {"RGB": "RGB"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.io", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(nvjpeg, "_stream", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for cached in (nvjpeg.flaw, nvjpeg.described):
        cached.cache_clear()
    assert nvjpeg.flaw() == ""
    found.batches.clear()
    yield found
    for cached in (nvjpeg.flaw, nvjpeg.described):
        cached.cache_clear()


LEFT_TO_PILLOW = ("grey", "kept as RGB", "bytes behind the end")


@pytest.mark.parametrize(("name", "data"), [pytest.param(*kind, id=kind[0]) for kind in kinds()])
def test_whole_files_of_luma_and_colour_are_decoded(device: Device, name: str, data: bytes) -> None:
    found = decode_jpeg(data, "stored")
    assert (found is None) == (name in LEFT_TO_PILLOW)
    if found is not None:
        np.testing.assert_array_equal(found, decode_image(data, where="x"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_or_left(device: Device, orientation: int) -> None:
    data = turned(orientation)
    for way in ("stored", "upright"):
        np.testing.assert_array_equal(decode_jpeg(data, way), decode_image(data, where="x", orientation=way))


def test_what_would_be_half_decoded_is_left_to_pillow(device: Device) -> None:
    good = jpeg(picture(200, 300))
    for data in (cmyk(), good[: len(good) // 2], good[:200], good[:-2], b"\xff\xd8\xff", b"", b"\x89PNG\r\n\x1a\n", good[1:]):
        assert decode_jpeg(data, "upright") is None
    assert device.batches == []
    assert decode_jpeg(good + b"\0\0", "upright") is not None


@pytest.mark.parametrize("status", ["Failed to get image info: 4", "Failed to decode batch: 3", "Unknown chroma subsampling"])
def test_a_file_that_it_refuses_fails_no_other(device: Device, status: str) -> None:
    files = [jpeg(picture(), quality=quality) for quality in (60, 70, 80, 90)]
    device.refused[files[2]] = status
    found = nvjpeg._decoded(files)
    assert [pixels is None for pixels in found] == [False, False, True, False]
    assert device.batches == [4, 1, 1, 1, 1]
    np.testing.assert_array_equal(found[3], decode_image(files[3], where="x"))


@pytest.mark.parametrize(
    "status", ["CUDA out of memory. Tried to allocate 3.00 GiB", "Failed to decode batch: 6", "Failed to decode batch: 5"]
)
def test_a_device_that_fails_is_an_error_and_not_pillows_turn(device: Device, status: str) -> None:
    data = jpeg(picture())
    device.refused[data] = status
    with pytest.raises(RuntimeError, match=status.partition(".")[0]):
        decode_jpeg(data, "stored")
    device.refused.clear()
    assert decode_jpeg(data, "stored") is not None


def test_threads_share_calls_and_each_gets_its_own(device: Device) -> None:
    files = [jpeg(picture(20 + number, 30)) for number in range(100)]
    device.gate.clear()
    with ThreadPoolExecutor(len(files)) as threads:
        waiting = [threads.submit(decode_jpeg, data, "stored") for data in files]
        while len(nvjpeg._calls._waiting) < len(files) - 1:  # the first has taken itself, and stands at the gate
            time.sleep(0.001)
        device.gate.set()
        for data, one in zip(files, waiting, strict=True):
            np.testing.assert_array_equal(one.result(), decode_image(data, where="x"))
    assert sorted(device.batches) == [1, 35, 64]


def test_one_that_fails_in_a_shared_call_is_told_to_all_of_it(device: Device) -> None:
    files = [jpeg(picture(20 + number, 30)) for number in range(6)]
    device.refused[files[-1]] = "Failed to synchronize CUDA stream: 700"
    device.gate.clear()
    with ThreadPoolExecutor(len(files)) as threads:
        waiting = [threads.submit(decode_jpeg, data, "stored") for data in files]
        while len(nvjpeg._calls._waiting) < len(files) - 1:
            time.sleep(0.001)
        device.gate.set()
        failed = [one for one in waiting if one.exception() is not None]
    assert len(failed) >= 5
    assert all("700" in str(one.exception()) for one in failed)


def test_a_machine_without_a_gpu_says_so() -> None:
    nvjpeg.flaw.cache_clear()
    if torch.cuda.is_available():
        pytest.skip("this one has a GPU")
    with pytest.raises(BadInput, match="torch finds none here; or leave --renderer nvjpeg out"):
        on_nvjpeg()


@pytest.fixture
def photos(tmp_path: Path) -> tuple[FeatureStore, ImageDataset]:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(picture(40 + number, 50)))
    store = FeatureStore.create(str(tmp_path / "store"))
    return store, build_index(store.objects, str(tmp_path / "photos"), "photos")


SPEC = ViewSpec(views_per_image=2, seed=3)


def test_views_of_it_are_a_set_of_their_own_that_another_machine_refuses(
    device: Device, photos: tuple[FeatureStore, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dataset = photos
    renderer = choose_renderer(store.objects, dataset, SPEC, 4, "nvjpeg")
    assert renderer == on_nvjpeg()
    assert (renderer.name, renderer.jpeg_decoder, renderer.is_on_devices) == ("nvjpeg", "nvjpeg", True)
    assert renderer.jpeg is not None
    assert renderer.jpeg["mode"] == "nvJPEG of CUDA 13.0 on NVIDIA H200"
    views = ViewSet.create(store.objects, dataset, SPEC, 4, renderer)
    rows, wanted = np.arange(8), Input(16)
    drawn, out = views.draw_shard(0), np.zeros((8, 16, 16, 3), np.uint8)
    fill_pixels(views, rows, drawn, [(wanted, out)], drawn_now=True)
    assert device.batches == [1, 1, 1, 1]  # an image is decoded once for its neighbouring views
    assert drawn.digest.any(axis=1).all()
    assert out.any()
    again = store.view_set(views.key)
    assert again.renderer == renderer
    assert again.dataset.jpeg_decoder == "nvjpeg"
    assert choose_renderer(store.objects, dataset, SPEC, 4, "auto") == renderer  # what is begun goes on
    assert views.key not in {ViewSet.create(store.objects, dataset, SPEC, 4, other).key for other in (PILLOW, fast())}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nvjpeg.flaw.cache_clear()
    assert Renderer.of(again.identity).name == "auto"
    with pytest.raises(
        CacheMismatch, match=r"nvJPEG of CUDA 13.0 on NVIDIA H200\), and nvJPEG decodes on a CUDA device, and torch finds none"
    ):
        fill_pixels(again, rows, drawn, [(wanted, out)])
