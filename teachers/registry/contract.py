"""The contract of a teacher, as tests that a plug-in's package and the author of a FILE.py:FUNCTION can run, too.

    class TestMyTeacher(TeacherContract):
        def load(self) -> Teacher:
            return load_teacher(resolve_teacher("my_teacher.py:build"))

A plain class: pytest collects a subclass whose name begins with Test. The teacher is loaded once for a class.
"""

import json
from functools import cached_property
from typing import ClassVar

import torch
from torch.nn import functional

from ...storage.core.identity import canonical_json, digest
from .canary import MIN_COSINE, canary, canary_images, compare
from .spec import CLS_KINDS
from .teacher import Teacher


class TeacherContract:
    """Override `load`."""

    _loaded: ClassVar[dict[type, Teacher]] = {}

    def load(self) -> Teacher:
        """Return the teacher under test."""
        raise NotImplementedError("a contract's subclass says how its teacher is loaded")

    @cached_property
    def teacher(self) -> Teacher:
        """The loaded teacher, once for a class."""
        if type(self) not in self._loaded:
            self._loaded[type(self)] = self.load()
        return self._loaded[type(self)]

    def pixels(self, count: int) -> torch.Tensor:
        """Return uint8 (count, size, size, 3): the canary's pictures at the teacher's own size."""
        return torch.from_numpy(canary_images(count, self.teacher.spec.preprocessing.size_px))

    def test_tokens_have_the_declared_shapes(self) -> None:
        """cls (B, cls_dim) or None, patch (B, rows, columns, patch_dim)."""
        spec, (cls_BD, patch_BHWD) = self.teacher.spec, self.teacher(self.pixels(2))
        assert tuple(patch_BHWD.shape) == (2, *spec.grid, spec.patch_dim)
        assert (None if cls_BD is None else tuple(cls_BD.shape)) == (None if spec.cls_dim is None else (2, spec.cls_dim))

    def test_tokens_are_fp32_finite_and_differ_between_pictures(self) -> None:
        """A constant teaches nothing, and a NaN would be refused image by image."""
        outputs = [tokens for tokens in self.teacher(self.pixels(2)) if tokens is not None]
        assert all(tokens.dtype == torch.float32 for tokens in outputs)
        assert all(bool(torch.isfinite(tokens).all()) for tokens in outputs)
        assert all(not torch.equal(tokens[0], tokens[1]) for tokens in outputs)

    def test_two_forwards_agree_bit_by_bit(self) -> None:
        """Dropout, or a draw in the forward, would give each view other targets."""
        pixels = self.pixels(2)
        for first, second in zip(self.teacher(pixels), self.teacher(pixels), strict=True):
            assert (first is None) == (second is None)
            assert first is None or second is None or torch.equal(first, second)

    def test_a_picture_has_the_same_tokens_in_any_batch(self) -> None:
        """Batch statistics would make tokens depend on their neighbours; rounding may differ."""
        pixels = self.pixels(3)
        for batched, alone in zip(self.teacher(pixels), self.teacher(pixels[1:2]), strict=True):
            assert (batched is None) == (alone is None)
            if batched is not None and alone is not None:
                cosine = functional.cosine_similarity(batched[1].flatten(), alone[0].flatten(), dim=0).item()
                assert cosine >= MIN_COSINE, f"cosine {cosine:.6f} between a picture in a batch of three and alone"

    def test_the_class_token_is_what_it_is_called(self) -> None:
        """A mean is the mean of the patch tokens; none is None; anything else is not just their mean."""
        spec, (cls_BD, patch_BHWD) = self.teacher.spec, self.teacher(self.pixels(2))
        assert spec.cls in CLS_KINDS
        assert (cls_BD is None) == (spec.cls == "none")
        if cls_BD is not None and cls_BD.shape[1] == patch_BHWD.shape[3]:
            mean_BD = patch_BHWD.mean(dim=(1, 2))
            is_mean = bool(torch.allclose(cls_BD, mean_BD, rtol=1e-3, atol=1e-3 * float(mean_BD.abs().max())))
            assert is_mean or spec.cls != "mean of patch tokens", "it is called the mean of the patch tokens and is not"
            assert not is_mean or "mean" in spec.cls, f"it is called {spec.cls} and is the mean of the patch tokens"

    def test_it_is_frozen_and_in_eval_mode(self) -> None:
        """Whatever anybody calls on it."""
        self.teacher.train(True)
        assert not any(module.training for module in self.teacher.modules())
        assert not any(parameter.requires_grad for parameter in self.teacher.parameters())

    def test_its_identity_is_json_and_the_same_when_it_is_loaded_again(self) -> None:
        """Feature sets are named by its digest, so it holds no path, no time, no object."""
        identity = self.teacher.spec.identity()
        assert json.loads(canonical_json(identity)) == identity
        assert str(self.teacher.spec.weights_path) not in json.dumps(identity)
        assert digest(self.load().spec.identity()) == digest(identity)

    def test_loaded_again_it_passes_its_own_canary(self) -> None:
        """What a worker checks before its first shard: the same teacher in another process."""
        recorded = canary(self.teacher)
        assert compare(recorded, canary(self.load())) >= MIN_COSINE
