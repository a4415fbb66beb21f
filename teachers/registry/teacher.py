"""A frozen teacher: bytes of an image in, fp32 tokens out, and no way to train it by accident.

Axes: B images, H and W rows and columns, D channels. It stays in eval mode whatever is called on it, no parameter requires a gradient, and
the forward runs under `no_grad` rather than `inference_mode`: a live target takes part in a loss, and autograd refuses to
save inference tensors. bf16 is autocast, and fp32 switches an outer autocast off, so that the precision in the identity is
the one that ran. Images are channels-last in memory, which on CPU gives convolutions 1.3 to 2 times the rate.
Two batch sizes give equal tokens only to rounding (about 1e-5): matrix kernels block by batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...storage.core.errors import EupeError
from ...storage.views.input_size import SizePx
from ..encoders.encoder import Encoder
from ..encoders.tokens import LayerTokens, Tokens, concatenated
from ..runtime.devices import mixed_precision
from .spec import TeacherSpec


class CannotCompile(EupeError, RuntimeError):
    """`torch.compile` failed where it was asked for: a missing C++ compiler, or a model that it cannot take."""


class Teacher(nn.Module):
    """`spec` and the loaded encoder behind it; the encoder is frozen here and may be shared by `at_size` views."""

    def __init__(self, spec: TeacherSpec, encoder: Encoder) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = encoder.requires_grad_(False)
        self._images: int | None = None  # in one compiled forward
        self._encoder_with_layers = encoder.with_layers
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: batch statistics and drop-path in a teacher would change the targets."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def forward(self, pixels_BHWC: Tensor) -> Tokens:
        """Return fp32 Tokens, on the teacher's device, of uint8 RGB (B, h, w, 3) that is already resized.

        Any sides that are multiples of the stride are taken; a cache takes `spec.preprocessing.size_px`. Raises BadInput
        on other sides and on pixels that are not uint8.
        """
        return self._run(pixels_BHWC, ()).final

    @torch.no_grad()
    def with_layers(self, pixels_BHWC: Tensor, layers: tuple[int, ...]) -> LayerTokens:
        """Return what `forward` does, and the patch tokens of some blocks, counted from 1 (`registry.layers` says which there are)."""
        return self._run(pixels_BHWC, layers)

    def _run(self, pixels_BHWC: Tensor, layers: tuple[int, ...]) -> LayerTokens:
        if self._images is None:
            return self._tokens(pixels_BHWC, layers)
        return concatenated([self._compiled_tokens(part, self._images, layers) for part in torch.split(pixels_BHWC, self._images)])

    def _tokens(self, pixels_BHWC: Tensor, layers: tuple[int, ...]) -> LayerTokens:
        device = self.device
        x_BCHW = self.spec.preprocessing.apply(pixels_BHWC.to(device, non_blocking=True))
        with mixed_precision(device, self.spec.precision):
            (cls_BD, patch_BHWD), of_layers = self._encoder_with_layers(x_BCHW, layers) if layers else (self.encoder(x_BCHW), {})
        final = Tokens(None if cls_BD is None else cls_BD.float(), patch_BHWD.float().contiguous())
        return LayerTokens(final, {layer: values.float().contiguous() for layer, values in of_layers.items()})

    def compile_encoder(self, images: int) -> None:
        """Use `torch.compile`'s kernels from now on, made at the first forward for batches of `images`; smaller ones are padded with black.

        Fused kernels round otherwise, as another batch size does, so this is in no identity; a canary says whether the tokens are still the
        same. One shape only, because an open batch is slower and does not compile for every convolutional network. A model that cannot be
        compiled raises CannotCompile at its first forward.
        """
        if self._images is None:
            self.encoder.compile(dynamic=False)
            if self.encoder.depth:
                self._encoder_with_layers = torch.compile(self.encoder.with_layers, dynamic=False)
        self._images = images

    @property
    def compiled(self) -> bool:
        """Whether `compile_encoder` was called."""
        return self._images is not None

    def _compiled_tokens(self, pixels_BHWC: Tensor, images: int, layers: tuple[int, ...]) -> LayerTokens:
        from torch._dynamo.exc import TorchDynamoException

        count = len(pixels_BHWC)
        try:
            filled_BHWC = functional.pad(pixels_BHWC, (0, 0) * 3 + (0, images - count)).contiguous()  # other strides compile anew
            tokens = self._tokens(filled_BHWC, layers)
        except TorchDynamoException as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CannotCompile(f"teacher {self.spec.name} does not compile here ({first}); run without --compile") from error
        return tokens.first(count)

    def at_size(self, size_px: SizePx) -> "Teacher":
        """Return the same weights (shared, not copied) under a spec of another input size; raises BadInput off the stride."""
        return Teacher(self.spec.at_size(size_px), self.encoder)
