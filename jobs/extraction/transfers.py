"""Copy pixels to a teacher's device and tokens back while it computes: pinned memory, and one CUDA stream in each direction.

On CUDA everything here returns before the device is done. A batch's pixels cross while the batch before it is computed; its tokens start
back as soon as they exist and not after the next batch, which stands in the device's queue by then; and the host waits for them in the
thread that encodes. So the device has the next batch before it ends one, and holds two batches at most. On a CPU the same calls do the
work at once. `Arriving.device_s` is the device's own time, which the host's clock cannot see.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ...storage.sources.decode import Pixels
from ...teachers.runtime.copy_streams import copy_stream
from ...teachers.runtime.device_resize import CutViews


class StoredTokens(NamedTuple):
    """Class tokens (B, D) or None, and the patch tokens that are stored: (B, H, W, D), or (B, T, D) of a sampled set; by block, too."""

    cls_BD: Tensor | None
    patch: Tensor
    layers: Mapping[int, Tensor] = MappingProxyType({})

    def moved(self, move: Callable[[Tensor], Tensor]) -> "StoredTokens":
        """Return each tensor as `move` makes it."""
        cls_BD = None if self.cls_BD is None else move(self.cls_BD)
        return StoredTokens(cls_BD, move(self.patch), {layer: move(values) for layer, values in self.layers.items()})


@dataclass
class Arriving:
    """Tokens on their way to the host."""

    tokens: StoredTokens
    """On the host; valid after `wait`."""
    device: torch.device
    _seconds: float = 0.0
    _computed: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    _arrived: torch.cuda.Event | None = None

    def wait(self) -> StoredTokens:
        """Wait until the tokens are on the host, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self.tokens

    @property
    def device_s(self) -> float:
        """Seconds that the device computed, after `wait`."""
        return self._seconds if self._computed is None else self._computed[0].elapsed_time(self._computed[1]) / 1000


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Copy pixels to the device for the next forward; on CUDA they cross while the device computes, and the forward waits for them."""
    if device.type != "cuda":
        return pixels.to(device)
    stream, computing = copy_stream(device, "in"), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        moved = pixels.pin_memory().to(device, non_blocking=True)  # a pageable copy would wait for the device
    computing.wait_stream(stream)
    moved.record_stream(computing)  # else its memory would be taken for the next batch while this one is read
    return moved


def views_on_device(views: Pixels | CutViews, device: torch.device) -> Tensor:
    """Return pixels (n, height, width, 3) on the device: rendered ones, or cut ones that are resized there."""
    if not isinstance(views, CutViews):
        return to_device(torch.from_numpy(views), device)
    if device.type != "cuda":
        return views.to(device).resized()
    stream, computing = copy_stream(device, "in"), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        sent = views.to(device)
    computing.wait_stream(stream)
    sent.record_stream(computing)
    return sent.resized()


def compute(work: Callable[[], StoredTokens], device: torch.device) -> Arriving:
    """Do a forward on its device and send its tokens to the host; raises what the work raises."""
    if device.type != "cuda":
        started = time.perf_counter()
        tokens = work()
        host = tokens.moved(Tensor.cpu)
        return Arriving(host, device, time.perf_counter() - started)
    computing, back = torch.cuda.current_stream(device), copy_stream(device, "out")
    begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record(computing)
    tokens = work()
    done.record(computing)
    back.wait_event(done)
    with torch.cuda.stream(back):
        host = tokens.moved(lambda tensor: _sent(tensor, back))
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(back)
    return Arriving(host, device, 0.0, (begun, done), arrived)


def _sent(tokens: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Return a pinned copy that is filled when the stream comes to it."""
    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    host.copy_(tokens, non_blocking=True)
    tokens.record_stream(stream)
    return host


def busy_seconds(batch: list[Arriving]) -> float:
    """Return how long the devices computed one batch: devices work in parallel, teachers on one device in turn."""
    by_device: dict[torch.device, float] = {}
    for arriving in batch:
        by_device[arriving.device] = by_device.get(arriving.device, 0.0) + arriving.device_s
    return max(by_device.values(), default=0.0)
