"""The contract of a codec: a class of tests that every codec runs, one from outside of this package too; torch decoding included.

Subclass it under a name that begins with `Test`, and give each test the row: `codec = CODECS["int8"]` in the class, or a fixture that sets
`self.codec`. Plain asserts and nothing of pytest, so that it can be imported anywhere.
Axes: n views, H × W grid, T tokens, D channels.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.features.codec import Encoded, TokenCodec
from ...storage.shards.zarr_format import ArraySpec

Float32s = NDArray[np.float32]


class CodecContract:
    """The tests; a codec of a worse quality lowers `least_cosine`, one that cannot store 128 channels changes `dim`."""

    codec: TokenCodec
    dim = 128
    """Channels of the tokens that are tried."""
    least_cosine = 0.99
    """Of normal tokens with what comes back."""

    def normal(self, *shape: int) -> Float32s:
        """Return tokens (*shape, D) of a normal distribution, the same each time."""
        return np.random.default_rng(0).normal(size=(*shape, self.dim)).astype(np.float32)

    def decoded_by_twin(self, encoded: Encoded) -> Float32s:
        """Return stored tokens decoded by the torch decoder, on the CPU."""
        scale = None if encoded.scale is None else torch.from_numpy(encoded.scale).float()
        tokens: Any = self.codec.decode_tensors(torch.from_numpy(np.asarray(encoded.codes)), scale)
        assert isinstance(tokens, Tensor)
        assert tokens.dtype == torch.float32
        values: Float32s = tokens.numpy()
        return values

    def test_codes_and_scales_have_the_shapes_and_types_that_the_row_says(self) -> None:
        """Check a whole grid and sampled tokens."""
        for tokens in ((2, 3), (5,)):
            codes, scale = self.codec.encode(self.normal(4, *tokens))
            code_shape, scale_shape = self.codec.stored_shapes(tokens, self.dim)
            assert (codes.dtype, codes.shape) == (self.codec.code_dtype, (4, *code_shape))
            if scale_shape is None:
                assert scale is None
                continue
            assert scale is not None
            assert (scale.dtype, scale.shape) == (np.dtype(np.float16), (4, *scale_shape))

    def test_codes_are_of_a_type_that_the_store_writes_and_their_axes_have_names(self) -> None:
        """Write a store's metadata of them."""
        scaling = self.codec.scaling
        code_axis = "channel" if scaling is None else scaling.code_axis
        code_shape, scale_shape = self.codec.stored_shapes((2, 3), self.dim)
        assert ArraySpec("patch", (4, *code_shape), self.codec.code_dtype, 4, 1, ("view", "grid_y", "grid_x", code_axis)).metadata()
        assert ArraySpec("cls", (4, self.dim), self.codec.cls_dtype, 4, 1, ("view", "cls_channel")).metadata()
        assert (scaling is None) == (scale_shape is None)
        if scaling is not None and scale_shape is not None:
            assert len(scale_shape) == 2 + len(scaling.scale_axes)
            assert scaling.attributes

    def test_what_is_decoded_points_where_the_tokens_did(self) -> None:
        """Check the least cosine of a token."""
        patch = self.normal(3, 4, 5)
        decoded = self.codec.decode(*self.codec.encode(patch))
        assert (decoded.dtype, decoded.shape) == (np.dtype(np.float32), patch.shape)
        cosine = (decoded * patch).sum(-1) / np.linalg.norm(decoded, axis=-1) / np.linalg.norm(patch, axis=-1)
        assert cosine.min() > self.least_cosine

    def test_the_twin_decodes_on_the_device_what_the_decoder_does(self) -> None:
        """Check one view and many, a grid and sampled tokens, small values and the largest."""
        for values in (self.normal(1, 2, 2), self.normal(9, 2, 3), self.normal(3, 7), self.normal(2, 1, 1) * 1e-3, self.extremes()):
            encoded = self.codec.encode(values)
            np.testing.assert_allclose(self.decoded_by_twin(encoded), self.codec.decode(*encoded), rtol=1e-6, atol=1e-6)

    def test_the_largest_values_come_back_finite(self) -> None:
        """Check both signs of what the row says it can store, beside small values."""
        assert np.isfinite(self.codec.decode(*self.codec.encode(self.extremes()))).all()

    def extremes(self) -> Float32s:
        """Return one view whose tokens reach what can be stored, at most what fp16 holds, in the first channels."""
        values = self.normal(1, 2, 2)
        values[..., :2] = min(self.codec.largest, 65_504.0)
        values[..., 1] *= -1
        return values

    def test_zeros_stay_zeros(self) -> None:
        """Check a view that is all zeros."""
        assert not self.codec.decode(*self.codec.encode(np.zeros((1, 2, 2, self.dim), np.float32))).any()

    def test_a_view_is_stored_the_same_alone_and_among_others_and_is_not_changed(self) -> None:
        """Check that batches may have any size."""
        patch = self.normal(5, 2, 2)
        before = patch.copy()
        codes, scale = self.codec.encode(patch)
        for n in range(len(patch)):
            alone = self.codec.encode(patch[n : n + 1])
            np.testing.assert_array_equal(alone.codes[0], codes[n])
            if scale is not None and alone.scale is not None:
                np.testing.assert_array_equal(alone.scale[0], scale[n])
        np.testing.assert_array_equal(patch, before)

    def test_decoding_fills_the_memory_that_is_given(self) -> None:
        """Check that every value of it is written."""
        patch = self.normal(3, 2, 2)
        encoded, out = self.codec.encode(patch), np.full_like(patch, np.nan)
        assert self.codec.decode(*encoded, out) is out
        np.testing.assert_array_equal(out, self.codec.decode(*encoded))

    def test_codes_of_another_type_and_missing_scales_are_refused(self) -> None:
        """Check that another codec's arrays are not read as this one's."""
        codes, scale = self.codec.encode(self.normal(1, 2, 2))
        assert self.refused(codes.astype(np.float64), scale)
        assert self.refused(codes, np.ones((1, 2, 2, 1), np.float16) if scale is None else None)

    def refused(self, codes: NDArray[np.generic], scale: NDArray[np.float16] | None) -> bool:
        """Return whether decoding raises ValueError."""
        try:
            self.codec.decode(codes, scale)
        except ValueError:
            return True
        return False
