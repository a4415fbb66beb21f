"""Pixels alone, on all cores: our stream against what a torch user would take for the same files, views a second by the clock.

Ours is `student.data.stream.Stream` without targets: sha256 and pixel digest checked, recorded crops, batches in memory. The peers draw
crops of their own, check nothing, and get every advantage that their documentation names: simplejpeg for decoding where torchvision's own
decoder does not load (it does not beside a CPU build of torch), torchvision v2 on uint8 tensors, persistent workers, one a core. DALI runs
without a device where it starts. LitData and MDS hold the files' bytes in their containers. Rounds are interleaved, medians count.

    python -m benchmarks.bench_pixel_streams [--photos FOLDER]
"""

import argparse
import importlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.data.targets import STUDENT, Rendering
from eupe_pipeline.teachers.runtime.torchvision_guard import install
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .figures import interleave, medians, report
from .jpeg_photos import IMAGENET_HW, jpeg_photos, write_many
from .pixels_alone import NoTargets, photo_views
from .store_peers import PEERS, Peer, available

SIDE, BATCH, COUNT = 256, 64, 1024
Run = Callable[[int], None]


def our_stream(folder: Path, threads: int) -> Run:
    """Return a run over all views of the photos once."""
    views = photo_views(folder)
    order, steps = Order(len(views.dataset), 1, 0), COUNT // BATCH
    stream = Stream(
        views, NoTargets(), order, lambda step: Rendering(STUDENT, SIDE, "bicubic"), batch_size=BATCH, largest_px={STUDENT: SIDE},
        threads=threads, slots=3,
    )  # fmt: skip

    def run(number: int) -> None:
        for _ in stream.batches((number + 1) * steps, (number + 2) * steps):
            pass

    return run


def transforms() -> Callable[[bytes], Tensor]:
    """Return torchvision's transforms over a JPEG's bytes, by the fastest decoder that loads here."""
    install()
    from torchvision.transforms import v2

    way = v2.Compose([v2.RandomResizedCrop(SIDE, (0.32, 1), interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip()])
    try:
        from torchvision.io import decode_jpeg

        decode_jpeg(torch.zeros(1, dtype=torch.uint8))
    except (RuntimeError, AttributeError, ImportError) as error:
        if "valid JPEG" in str(error) or "JPEG" in str(error):
            return lambda data: way(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)))
    import simplejpeg

    return lambda data: way(torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1))


def pillow_transforms() -> Callable[[bytes], Tensor]:
    """Return torchvision's transforms over what `ImageFolder` gives: a Pillow image."""
    install()
    from PIL import Image
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIDE, (0.32, 1), interpolation=v2.InterpolationMode.BICUBIC)
    way = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return lambda data: way(Image.open(io.BytesIO(data)).convert("RGB"))


class Photos(Dataset[Tensor]):
    """The files of a folder, or the samples of a container, as views; what a worker needs is made in the worker."""

    def __init__(self, make: Callable[[], Callable[[bytes], Tensor]], folder: Path, container: str | None, width: int) -> None:
        self.make, self.folder, self.container, self.width = make, folder, container, width
        self.paths = sorted((folder / "photos").iterdir())
        self._way: Callable[[bytes], Tensor] | None = None
        self._peer: Peer | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self._way is None:
            torch.set_num_threads(1)
            self._way = self.make()
        return self._way(self._bytes(index))

    def _bytes(self, index: int) -> bytes:
        if self.container is None:
            return self.paths[index].read_bytes()
        if self._peer is None:
            self._peer = PEERS[self.container](self.folder / "peers" / self.container)
            self._peer.open((len(self.paths), self.width))
        row = np.empty((1, self.width), np.float16)
        self._peer.read(np.array([index]), row)
        flat = row.view(np.uint8)[0]
        return bytes(flat[8 : 8 + int(flat[:8].view(np.int64)[0])])


def loader_run(photos: Photos, workers: int) -> Run:
    """Return a run over a DataLoader whose workers stay."""
    loader = DataLoader(photos, BATCH, shuffle=True, num_workers=workers, persistent_workers=True, prefetch_factor=2)

    def run(number: int) -> None:
        for _ in loader:
            pass

    return run


def dali_run(folder: Path, threads: int) -> Run:
    """Return a run over DALI's pipeline on the CPU."""
    fn, types = importlib.import_module("nvidia.dali.fn"), importlib.import_module("nvidia.dali.types")
    pipeline: Any = importlib.import_module("nvidia.dali").pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)

    def views() -> Any:
        data, _ = fn.readers.file(files=[str(path) for path in sorted((folder / "photos").iterdir())], random_shuffle=True)
        image = fn.decoders.image_random_crop(data, device="cpu", random_area=[0.32, 1.0], random_aspect_ratio=[0.75, 1.33],
                                              output_type=types.RGB)  # fmt: skip
        image = fn.resize(image, device="cpu", size=[SIDE, SIDE], interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(image, horizontal=fn.random.coin_flip(), device="cpu")

    built = pipeline(views)()
    built.build()
    built.run()

    def run(number: int) -> None:
        for _ in range(COUNT // BATCH):
            built.run()

    return run


def contained(photos: list[Path], folder: Path) -> tuple[int, list[str]]:
    """Write the files' bytes into LitData's and MDS's containers, each sample padded to one length; return its width and their names."""
    width = (8 + max(path.stat().st_size for path in photos) + 1) // 2 * 2
    samples = np.zeros((len(photos), width), np.uint8)
    for row, path in zip(samples, photos, strict=True):
        data = path.read_bytes()
        row[:8] = np.array([len(data)], np.int64).view(np.uint8)
        row[8 : 8 + len(data)] = np.frombuffer(data, np.uint8)
    found, absent = available(folder / "peers")
    ready: list[str] = [name for name in ("litdata", "mds") if name in found]
    for name in ready:
        found[name].write(samples.view(np.float16))
    for name in ("litdata", "mds"):
        if name in absent:
            print(f"streams {name} is left out: {absent[name]}")
    return width // 2, ready


def contestants(folder: Path, workers: int) -> dict[str, Run]:
    """Return all that run here."""
    width, containers = contained(sorted((folder / "photos").iterdir()), folder)
    found: dict[str, Run] = {"ours": our_stream(folder, workers)}
    makers: dict[str, Callable[[], Run]] = {
        "DataLoader, torchvision v2": lambda: loader_run(Photos(transforms, folder, None, width), workers),
        "DataLoader, torchvision v2 on Pillow": lambda: loader_run(Photos(pillow_transforms, folder, None, width), workers),
        **{name: partial(loader_run, Photos(transforms, folder, name, width), workers) for name in containers},
        "DALI": lambda: dali_run(folder, workers),
    }
    for name, make in makers.items():
        try:
            (run := make())(0)
            found[name] = run
        except Exception as error:  # noqa: BLE001 - a peer that does not start is left out, whatever it says
            print(f"streams {name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=None, help="Default: twenty of ImageNet, fetched once.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-pixel-streams.json"))
    options = parser.parse_args()
    workers, folder = os.cpu_count() or 1, Path(tempfile.mkdtemp(prefix="bench-streams-"))
    torch.set_num_threads(1)
    try:
        write_many(jpeg_photos(options.photos), folder / "photos", COUNT)
        rounds = interleave(contestants(folder, workers), options.rounds)
    finally:
        shutil.rmtree(folder)
    rates = {name: COUNT / seconds for name, seconds in medians(rounds).items()}
    for name, rate in sorted(rates.items(), key=lambda pair: -pair[1]):
        print(f"streams {name:38} {rate:8.1f} views/s")
    best = max((name for name in rates if name != "ours"), key=lambda name: rates[name])
    ratios = np.array(rounds[best]) / np.array(rounds["ours"])
    results = {"pixels.stream/best_peer": float(np.median(ratios)), "pixels.stream_views_per_s": rates["ours"]}
    details = {
        "command": "python -m benchmarks.bench_pixel_streams", "best_peer": best, "views_per_s": rates, "workers": workers, "batch": BATCH,
        "photos": COUNT, "size_hw": IMAGENET_HW,
    }  # fmt: skip
    report(results, {"pixels.stream/best_peer": (">= ", 1.2)}, details, options.out)


if __name__ == "__main__":
    main()
