"""Resize a batch of crops on the device, to the bytes of torch's uint8 kernels on the CPU, by which views are rendered (`torch_resize`).

Those kernels filter rows first, then columns. Along each side they compute the filter's weights in fp64, scale them by the largest power
of two with which all fit into 16 bits, round them, sum whole numbers, shift back rounding halves up, and clamp to a byte. The same is done
here for many views at once: weights in fp64, one operation after the other, so that no compiler fuses two into another rounding; sums as
two matrix products, of the weights' upper and lower digits, whose factors have at most eight significant bits and whose sums stay below
2²⁴, so that they are exact in fp32, and in TF32 and bf16 with sums in fp32, too. So the bytes are those of the host, views keep their
identity, and whatever was cached from the one serves the other; `require_same_bytes` compares the two on the device that is there. Every
size is known on the host: nothing waits.
Axes: N views, P pixels of all crops; H × W of the largest crop, Y × X of the input, L pixels and S positions along one of their sides; K
taps.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent, ignore_event
from ...storage.views import torch_resize
from ...storage.views.cut_pixels import COLUMNS, SLACK_PX, CutPixels, capacity_px
from ...storage.views.input_size import size_hw
from ...storage.views.letterbox import Letterbox
from ...storage.views.renderers import Renderer
from ...storage.views.view_spec import Input

Int64s = NDArray[np.int64]
_MOST_PIXELS = 1 << 24  # of padded crops that are resized at once: some 500 MB
_BASE = 128
_MOST_PRECISION = 22
_INT16 = 1 << 15
_REACH = {"bicubic": 2.0, "bilinear": 1.0}


@dataclass(frozen=True)
class CutViews:
    """N cut views of one input in host memory: pixels (P, 3), and a row of `COLUMNS` a view."""

    wanted: Input
    letterbox: Letterbox | None
    pixels: Tensor
    boxes: Tensor

    @classmethod
    def allocate(cls, wanted: Input, letterbox: Letterbox | None, count: int, *, pin: bool) -> "CutViews":
        """Return memory for so many views, pinned where a CUDA device will read it."""
        pixels = torch.empty((capacity_px(wanted, count), 3), dtype=torch.uint8, pin_memory=pin)
        return cls(wanted, letterbox, pixels, torch.zeros((count, len(COLUMNS)), dtype=torch.int64, pin_memory=pin))

    def at(self, wanted: Input) -> "CutViews":
        """Return the same memory for another input, which must not be larger."""
        return replace(self, wanted=wanted)

    def part(self, start: int, stop: int) -> CutPixels:
        """Return what a thread fills with views [start, stop): the parts of a batch do not touch."""
        first, last = (capacity_px(self.wanted, count) - SLACK_PX for count in (start, stop))
        return CutPixels(self.wanted, self.pixels.numpy()[first:last], self.boxes.numpy()[start:stop], first)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, window: slice) -> "CutViews":
        return replace(self, boxes=self.boxes[window])

    def to(self, device: torch.device) -> "SentViews":
        """Copy what was cut to a device, without gaps; on CUDA the copies are queued on the current stream."""
        boxes = self.boxes.numpy()
        if device.type != "cuda":
            return SentViews(self.wanted, self.letterbox, boxes, self.pixels.to(device), self.boxes.to(device))
        packed, runs = _without_gaps(boxes)
        pixels = torch.empty((sum(stop - start for start, stop in runs) + SLACK_PX, 3), dtype=torch.uint8, device=device)
        filled = 0
        for start, stop in runs:
            pixels[filled : filled + stop - start].copy_(self.pixels[start:stop], non_blocking=True)
            filled += stop - start
        sent_boxes = torch.from_numpy(packed).pin_memory().to(device, non_blocking=True)
        return SentViews(self.wanted, self.letterbox, packed, pixels, sent_boxes)


def _without_gaps(boxes: Int64s) -> tuple[Int64s, list[tuple[int, int]]]:
    """Return boxes whose crops stand one behind the other, and the spans of pixels that they come from."""
    packed, runs, filled = boxes.copy(), list[tuple[int, int]](), 0
    for n, (start, height, width) in enumerate(boxes[:, :3].tolist()):
        stop = start + height * width
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        elif stop > start:
            runs.append((start, stop))
        packed[n, 0], filled = filled, filled + stop - start
    return packed, runs


class SentViews(NamedTuple):
    """Cut views on a device; `boxes` of the host, too."""

    wanted: Input
    letterbox: Letterbox | None
    boxes: Int64s
    pixels: Tensor
    device_boxes: Tensor

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory until a stream has read it."""
        for tensor in (self.pixels, self.device_boxes):
            tensor.record_stream(stream)

    def resized(self) -> Tensor:
        """Return the views (N, height, width, 3) uint8: resized, mirrored, padded; black where nothing was cut."""
        height, width = size_hw(self.wanted.size_px)
        views = self.pixels.new_zeros((len(self.boxes), height, width, 3))
        with torch.autocast(self.pixels.device.type, enabled=False):  # whose products come back in fewer bits
            for window in self._windows():
                self._resize_into(views[window], window)
        return views

    def _resize_into(self, views_NYXC: Tensor, window: slice) -> None:
        """Write the views of a window."""
        box = dict(zip(COLUMNS, self.device_boxes[window].unbind(1), strict=True))
        of_host = dict(zip(COLUMNS, self.boxes[window].T, strict=True))
        _, height, width, _ = views_NYXC.shape
        flip_N, interpolation = box["flip"] > 0, self.wanted.interpolation
        columns = _side(box, of_host, "width", "left", width, flip_N, interpolation)
        rows = _side(box, of_host, "height", "top", height, torch.zeros_like(flip_N), interpolation)
        source_NHCW = self._padded(box, of_host)
        filtered_NHCX = _rounded(columns, *(source_NHCW.flatten(1, 2) @ digits for digits in columns.digits_NLS))
        filtered_NHX = filtered_NHCX.float().view(*source_NHCW.shape[:2], 3 * width)
        view_NYX = _rounded(rows, *(digits.transpose(1, 2) @ filtered_NHX for digits in rows.digits_NLS))
        views_NYXC.copy_(view_NYX.view(len(view_NYX), height, 3, width).transpose(2, 3))
        if self.letterbox is not None:
            inside = rows.inside_NS[:, :, None] & columns.inside_NS[:, None, :]
            for channel, level in enumerate(self.letterbox.rgb):  # a colour as a tensor would be a copy that waits
                views_NYXC[..., channel].masked_fill_(~inside, level)
        if not of_host["height"].all():
            views_NYXC.masked_fill_((box["height"] == 0)[:, None, None, None], 0)

    def _windows(self) -> Iterator[slice]:
        """Yield neighbouring views that are resized at once."""
        start, tallest, widest = 0, 0, 0
        for n, (height, width) in enumerate(self.boxes[:, 1:3].tolist()):
            tallest, widest = max(tallest, height), max(widest, width)
            if n > start and (n + 1 - start) * tallest * widest > _MOST_PIXELS:
                yield slice(start, n)
                start, tallest, widest = n, height, width
        yield slice(start, len(self.boxes))

    def _padded(self, box: dict[str, Tensor], of_host: dict[str, Int64s]) -> Tensor:
        """Return the crops (N, H, 3, W) in fp32, with any pixels behind their last row and column, which have no weight."""
        height, width = (max(1, int(of_host[side].max())) for side in ("height", "width"))
        row_H1, column_W = torch.arange(height, device=self.pixels.device)[:, None], torch.arange(width, device=self.pixels.device)
        pixel_NHW = box["start"][:, None, None] + row_H1 * box["width"][:, None, None] + column_W
        taken = self.pixels.index_select(0, pixel_NHW.clamp_(max=len(self.pixels) - 1).flatten())
        return taken.view(*pixel_NHW.shape, 3).transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)


class _Side(NamedTuple):
    """How one side of each crop, of length L, is filtered to the input's."""

    inside_NS: Tensor
    """Which positions of the input are the image's: at the others stands padding, and what is computed for them means nothing."""
    digits_NLS: tuple[Tensor, Tensor]
    """The upper and the lower digits of the whole-numbered weights, to the base of `_BASE`, in fp32."""
    shift_N: Tensor
    """By how many bits the weights are scaled."""


def _side(
    box: dict[str, Tensor], of_host: dict[str, Int64s], name: str, begin: str, length: int, flip_N: Tensor, interpolation: str
) -> _Side:
    of_N1, to_N1 = (box[which].clamp_min(1)[:, None] for which in (name, f"content_{name}"))
    position_NS = torch.arange(length, device=of_N1.device) - box[begin][:, None]
    inside_NS = (position_NS >= 0) & (position_NS < to_N1)
    position_NS = torch.where(flip_N[:, None], to_N1 - 1 - position_NS, position_NS)
    position_NS = torch.minimum(position_NS.clamp_min(0), to_N1 - 1)
    if interpolation == "nearest":
        first_NS, weights_NSK, shift_N = _nearest(of_N1, to_N1, position_NS)
    else:
        taps = _most_taps(of_host[name], of_host[f"content_{name}"], interpolation)
        first_NS, weights_NSK, shift_N = _antialiased(of_N1, to_N1, position_NS, taps, interpolation)
    taps, longest = weights_NSK.shape[2], max(1, int(of_host[name].max()))
    place_NKS = (first_NS[:, None, :] + torch.arange(taps, device=of_N1.device)[:, None]).clamp_(max=longest + taps - 1)
    upper_NSK = torch.div(weights_NSK + _BASE // 2, _BASE, rounding_mode="floor")
    empty = torch.zeros((len(of_N1), longest + taps, length), device=of_N1.device)
    digits = (upper_NSK, weights_NSK - _BASE * upper_NSK)
    upper, lower = (empty.scatter(1, place_NKS, values.transpose(1, 2).float())[:, :longest] for values in digits)
    return _Side(inside_NS, (upper, lower), shift_N)


def _rounded(side: _Side, upper: Tensor, lower: Tensor) -> Tensor:
    """Return bytes from the sums of both digits (N, …, …)."""
    shift_N11 = side.shift_N[:, None, None]
    sums = upper.int().mul_(_BASE).add_(lower.int()).add_((1 << shift_N11) >> 1)
    return sums.bitwise_right_shift_(shift_N11).clamp_(0, 255).to(torch.uint8)


def _nearest(of: Tensor, to: Tensor, position_NS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = of.float() / to.float()  # fp32, as the kernel has it
    nearest = ((position_NS.double() + 0.5) * scale.double()).float().floor().long()
    return torch.minimum(nearest, of - 1), torch.ones_like(nearest[:, :, None], dtype=torch.int32), torch.zeros_like(of[:, 0]).int()


def _antialiased(of: Tensor, to: Tensor, position_NS: Tensor, taps: int, interpolation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first pixel of each position, the whole-numbered weights (N, S, K) of its pixels, and by how many bits they are scaled."""
    scale = of.double() / to.double()
    wider = scale.clamp_min(1.0)
    support, shrink = wider * _REACH[interpolation], torch.ones_like(wider) / wider
    centre = scale * (position_NS.double() + 0.5)
    first = (centre - support + 0.5).long().clamp_min(0)
    count = torch.minimum((centre + support + 0.5).long(), of) - first
    count = torch.minimum(count.clamp_min(0), (support.ceil() * 2 + 1).long())
    tap = torch.arange(taps, device=of.device)
    distance = ((first[:, :, None] + tap) - centre[:, :, None] + 0.5) * shrink[:, :, None]
    weights = torch.where(tap < count[:, :, None], _kernel(distance.abs(), interpolation), torch.zeros_like(distance))
    total = torch.zeros_like(centre)
    for k in range(taps):  # one after the other, as the kernel adds them
        total = total + weights[:, :, k]
    weights = weights / total[:, :, None]
    powers = torch.exp2(torch.arange(1, _MOST_PRECISION + 1, device=of.device, dtype=torch.float64)).round()
    shift = ((weights.amax(dim=(1, 2))[:, None] * powers + 0.5).trunc() < _INT16).sum(1).int()
    scaled = weights * (torch.ones_like(shift, dtype=torch.int64) << shift)[:, None, None].double()
    return first, torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).trunc().int(), shift


def _kernel(distance: Tensor, interpolation: str) -> Tensor:
    """Return the filter's weight at distances ≥ 0: a triangle, or Keys's cubic with a = −0.5."""
    if interpolation == "bilinear":
        return torch.where(distance < 1, 1 - distance, torch.zeros_like(distance))
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _most_taps(of: Int64s, to: Int64s, interpolation: str) -> int:
    """Return how many pixels of a crop make one of the input, at most, along a side of some lengths."""
    scale = np.maximum(of / np.maximum(to, 1), 1.0)
    return int(np.ceil(scale * _REACH[interpolation]).max()) * 2 + 1


def require_device_renderer(renderers: Iterable[Renderer], on_event: OnEvent = ignore_event) -> None:
    """Raise `BadInput` unless some views are resized by kernels that a device can do the work of; say where that will be slow."""
    if not any(renderer.is_on_devices for renderer in renderers):
        raise BadInput(
            "Pillow resizes these views, and no device gives its bytes; use --resize host, or views of another renderer "
            "(extract-features --renderer fast begins a set of its own)"
        )
    if not torch.cuda.is_available():
        on_event({"event": "note", "text": "--resize device without a CUDA device is many times slower than --resize host; same bytes"})


def require_same_bytes(device: torch.device) -> None:
    """Raise `CacheMismatch` where a device resizes to other bytes than this machine's CPU does."""
    if torch_resize.digest_of(_probed(probe, device) for probe in torch_resize.probes()) != torch_resize.check():
        raise CacheMismatch(
            f"{device} resizes to other bytes than torch {torch_resize.version()} does on the CPU, so its views would not be the recorded "
            "ones; use --resize host"
        )


def _probed(probe: torch_resize.Probe, device: torch.device) -> NDArray[np.uint8]:
    height, width, _ = probe.picture.shape
    boxes = torch.tensor([[0, height, width, 0, 0, 0, *probe.size]])
    pixels = torch.nn.functional.pad(torch.from_numpy(probe.picture).flatten(0, 1), (0, 0, 0, SLACK_PX))
    sent = SentViews(Input(probe.size, probe.interpolation), None, boxes.numpy(), pixels.to(device), boxes.to(device))
    resized: NDArray[np.uint8] = sent.resized()[0].cpu().numpy()
    return resized
