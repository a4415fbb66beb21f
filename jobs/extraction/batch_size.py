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
from ...teachers.encoders.tokens import LayerTokens, Tokens, concatenated
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.device_resize import CutViews
from .transfers import StoredTokens, to_device, views_on_device

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
    """A loaded teacher that runs on batches of `views` views; `views=None` searches the number.

    `layers`: blocks whose tokens `with_layers` gives beside the final ones.
    """

    def __init__(self, teacher: Teacher, views: int | None, kept: KeptForwards | None = None, layers: tuple[int, ...] = ()) -> None:
        self.teacher, self.layers = teacher, layers
        self.backoffs = 0
        self.taken = 0  # views whose tokens had been kept
        self._kept, self._identity = kept, digest(teacher.spec.identity())
        self.views = views or self._search_size()

    def __call__(self, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None = None) -> Tokens:
        """Compute raw final tokens, as `with_layers` does."""
        return self.with_layers(pixels_BHWC, photometric_BP).final

    def with_layers(self, pixels_BHWC: Pixels | CutViews, photometric_BP: NDArray[np.float32] | None = None) -> LayerTokens:
        """Compute raw fp32 tokens of any number of views on the teacher's device; views are distorted first where parameters are given.

        Cut views are resized there, and nothing of them is kept.
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
            return concatenated(parts)

    def keep(self, views: int, pixels_BHWC: Pixels, photometric_BP: NDArray[np.float32] | None, tokens: StoredTokens) -> None:
        """Keep the tokens of a call that computed `views` at once, each forward by itself; does nothing where none are kept."""
        if self._kept is None:
            return
        for start in range(0, len(pixels_BHWC), views):
            window = slice(start, start + views)
            key = forward_key(self._identity, pixels_BHWC[window], None if photometric_BP is None else photometric_BP[window])
            cls = None if tokens.cls_BD is None else tokens.cls_BD[window].numpy()
            self._kept.keep(key, RawTokens(cls, tokens.patch[window].numpy()))
            for layer, values in tokens.layers.items():
                self._kept.keep(f"{key}-{layer}", RawTokens(None, values[window].numpy()))

    def _tokens(self, pixels_BHWC: Pixels | CutViews, photometric_BP: NDArray[np.float32] | None) -> LayerTokens:
        """Return the tokens of one forward, kept or computed."""
        if self._kept is None or isinstance(pixels_BHWC, CutViews):
            return self._forward(pixels_BHWC, photometric_BP)
        tokens = self._taken(self._kept, forward_key(self._identity, pixels_BHWC, photometric_BP))
        if tokens is None:
            return self._forward(pixels_BHWC, photometric_BP)
        self.taken += len(pixels_BHWC)
        return tokens

    def _taken(self, kept: KeptForwards, key: str) -> LayerTokens | None:
        """Return a forward's kept tokens on the teacher's device, None where not all of them are there."""
        device, final_kept = self.teacher.device, kept.take(key)
        of_layers = {layer: kept.take(f"{key}-{layer}") for layer in self.layers}
        if final_kept is None or None in of_layers.values():
            return None
        final = Tokens(
            None if final_kept.cls is None else torch.from_numpy(final_kept.cls).to(device), torch.from_numpy(final_kept.patch).to(device)
        )
        return LayerTokens(
            final,
            {layer: torch.from_numpy(kept_layer.patch).to(device) for layer, kept_layer in of_layers.items() if kept_layer is not None},
        )

    def _forward(self, pixels_BHWC: Pixels | CutViews, photometric_BP: NDArray[np.float32] | None = None) -> LayerTokens:
        device = self.teacher.device
        pixels = views_on_device(pixels_BHWC, device)
        if photometric_BP is not None:
            pixels = apply_photometric(pixels, to_device(torch.from_numpy(photometric_BP), device))
        return self.teacher.with_layers(pixels, self.layers) if self.layers else LayerTokens(self.teacher(pixels), {})

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
        shape = self.teacher.spec.preprocessing.input.shape
        pixels = np.random.default_rng(views).integers(0, 256, (views, *shape), np.uint8)
        started = time.perf_counter()
        self._forward(pixels).final.patch_BHWD.cpu()
        return (time.perf_counter() - started) / views
