"""A teacher and its batch size in views: fixed, or found by a search; halved after the device ran out of memory.

The search doubles it while each view gets noticeably cheaper, the device has memory and one batch stays short enough that a stop is prompt.
Running out of memory halves the number for the rest of the worker's life and does the same views again, counted in `backoffs`. Neither is
part of any identity, because a batch's size changes tokens by rounding alone. A forward that the statistics kept (`kept_forwards`) is taken
from there when exactly the same views come together again.
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.core.errors import EupeError
from ...storage.core.identity import digest
from ...storage.features.kept_forwards import KeptForwards, RawTokens, forward_key
from ...storage.sources.decode import Pixels
from ...teachers.encoders.photometric import apply_photometric
from ...teachers.encoders.tokens import Tokens
from ...teachers.registry.teacher import Teacher
from .transfers import to_device

LARGEST = {"cpu": 64, "cuda": 512}
_FIRST = {"cpu": 2, "cuda": 16}
_GAIN = 1.05  # a doubling must make a view this much cheaper
_LONGEST_S = 4.0  # SIGTERM is looked at between batches and has ten seconds
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine had no memory left for a tensor."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


class SizedTeacher:
    """A loaded teacher that runs on batches of `views` views; `views=None` searches the number."""

    def __init__(self, teacher: Teacher, views: int | None, kept: KeptForwards | None = None) -> None:
        self.teacher = teacher
        self.backoffs = 0
        self.taken = 0  # views whose tokens had been kept
        self._kept, self._identity = kept, digest(teacher.spec.identity())
        self.views = views or self._search_size()

    def __call__(self, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None = None) -> Tokens:
        """Compute raw fp32 tokens of any number of views on the teacher's device; views are distorted first where parameters are given.

        Raises `EupeError` when not even one view fits.
        """
        while True:
            windows = [slice(start, start + self.views) for start in range(0, len(pixels_BHWC), self.views)]
            try:
                parts = [
                    self._tokens(pixels_BHWC[window], None if photometric_BP is None else photometric_BP[window]) for window in windows
                ]
            except (RuntimeError, MemoryError) as error:
                self._back_off(error)
                continue
            return parts[0] if len(parts) == 1 else _concatenated(parts)

    def keep(self, views: int, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None, tokens: RawTokens) -> None:
        """Keep the tokens of a call that computed `views` at once, each forward by itself; does nothing where none are kept."""
        if self._kept is None:
            return
        for start in range(0, len(pixels_BHWC), views):
            window = slice(start, start + views)
            key = forward_key(self._identity, pixels_BHWC[window], None if photometric_BP is None else photometric_BP[window])
            self._kept.keep(key, RawTokens(None if tokens.cls is None else tokens.cls[window], tokens.patch[window]))

    def _tokens(self, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None) -> Tokens:
        """Return the tokens of one forward, kept or computed."""
        kept = None if self._kept is None else self._kept.take(forward_key(self._identity, pixels_BHWC, photometric_BP))
        if kept is None:
            return self._forward(pixels_BHWC, photometric_BP)
        self.taken += len(pixels_BHWC)
        cls, patch = (None if array is None else torch.from_numpy(array).to(self.teacher.device) for array in kept)
        assert patch is not None
        return Tokens(cls, patch)

    def _forward(self, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None = None) -> Tokens:
        device = self.teacher.device
        pixels = to_device(torch.from_numpy(pixels_BHWC), device)
        if photometric_BP is not None:
            pixels = apply_photometric(pixels, to_device(torch.from_numpy(photometric_BP), device))
        tokens: Tokens = self.teacher(pixels)
        return tokens

    def _back_off(self, error: Exception) -> None:
        """Halve the size after an out-of-memory error; every other error is raised again."""
        if not is_out_of_memory(error):
            raise error
        if self.views == 1:
            raise EupeError(
                f"{self.teacher.spec.name} has no memory for a single view on {self.teacher.device} ({str(error).splitlines()[0]}); "
                "use fewer --workers, --teachers-at-once 1, --precision bf16 or a smaller --teacher-size"
            ) from error
        self.views, self.backoffs = self.views // 2, self.backoffs + 1
        if self.teacher.compiled:
            self.teacher.compile_encoder(self.views)
        if self.teacher.device.type == "cuda":
            torch.cuda.empty_cache()

    def _search_size(self) -> int:
        """Return the smallest batch size beyond which doubling does not pay; running out of memory ends the search, without a back-off."""
        kind = self.teacher.device.type
        views, best_s = _FIRST.get(kind, 2), float("inf")
        self._seconds_per_view(1)  # kernels are chosen and memory is mapped at the first forward
        while views <= LARGEST.get(kind, 64):
            try:
                seconds = self._seconds_per_view(views)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return max(1, views // 2)
            if seconds * _GAIN > best_s or seconds * views > _LONGEST_S:
                return max(1, views // 2)
            views, best_s = views * 2, seconds
        return views // 2

    def _seconds_per_view(self, views: int) -> float:
        side = self.teacher.spec.preprocessing.size_px
        pixels = np.random.default_rng(views).integers(0, 256, (views, side, side, 3), np.uint8)
        started = time.perf_counter()
        self._forward(pixels).patch_BHWD.cpu()
        return (time.perf_counter() - started) / views


def _concatenated(parts: list[Tokens]) -> Tokens:
    classes = [part.cls_BD for part in parts if part.cls_BD is not None]
    return Tokens(torch.cat(classes) if classes else None, torch.cat([part.patch_BHWD for part in parts]))
