"""The contract of a teacher: one class of tests that every kind of teacher passes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.storage.views.input_size import SizePx, square_side
from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor, nn


def pixels(n: int, size_px: SizePx) -> Tensor:
    return torch.from_numpy(canary_images(n, size_px))


@pytest.fixture(scope="session")
def teacher(spec: TeacherSpec) -> Teacher:
    return load_teacher(spec)


class TestEveryTeacher:
    def test_gives_the_shapes_that_its_spec_promises(self, teacher: Teacher) -> None:
        spec = teacher.spec
        cls_BD, patch_BHWD = teacher(pixels(3, spec.preprocessing.size_px))
        assert patch_BHWD.shape == (3, *spec.grid, spec.patch_dim)
        assert (None if cls_BD is None else tuple(cls_BD.shape)) == (None if spec.cls_dim is None else (3, spec.cls_dim))

    def test_gives_finite_fp32_tokens_that_differ_between_images(self, teacher: Teacher) -> None:
        cls_BD, patch_BHWD = teacher(pixels(2, teacher.spec.preprocessing.size_px))
        for tokens in (cls_BD, patch_BHWD):
            assert tokens is not None
            assert tokens.dtype == torch.float32
            assert tokens.isfinite().all()
            assert not torch.allclose(tokens[0], tokens[1])

    @pytest.mark.fault(17, "right")
    def test_stays_in_eval_mode_whatever_its_owner_does(self, teacher: Teacher) -> None:
        nn.Sequential(teacher).train()
        assert not any(module.training for module in teacher.modules())

    def test_asks_for_no_gradient_and_its_tokens_can_serve_in_a_loss(self, teacher: Teacher) -> None:
        tokens = teacher(pixels(2, teacher.spec.preprocessing.size_px)).patch_BHWD
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert not tokens.requires_grad
        scale = torch.ones((), requires_grad=True)
        (scale * tokens).square().mean().backward()
        assert scale.grad is not None

    def test_is_deterministic(self, teacher: Teacher) -> None:
        batch = pixels(3, teacher.spec.preprocessing.size_px)
        first, second = teacher(batch), teacher(batch)
        assert torch.equal(first.patch_BHWD, second.patch_BHWD)
        assert first.cls_BD is None or torch.equal(first.cls_BD, second.cls_BD)

    def test_an_image_gets_the_same_tokens_alone_and_in_any_batch(self, teacher: Teacher) -> None:
        batch = pixels(5, teacher.spec.preprocessing.size_px)
        together = teacher(batch).patch_BHWD
        alone = torch.cat([teacher(batch[i : i + 1]).patch_BHWD for i in range(5)])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * float(together.abs().max()))

    def test_does_not_change_the_pixels_that_it_is_given(self, teacher: Teacher) -> None:
        batch = pixels(1, teacher.spec.preprocessing.size_px)
        before = batch.clone()
        teacher(batch)
        assert torch.equal(batch, before)

    def test_at_another_size_it_gives_the_grid_of_that_size_with_the_same_weights(self, teacher: Teacher) -> None:
        size_px = square_side(teacher.spec.preprocessing.size_px, "this teacher") + teacher.spec.stride_px
        other = teacher.at_size(size_px)
        assert other.encoder is teacher.encoder
        assert other(pixels(1, size_px)).patch_BHWD.shape[1:3] == other.spec.grid
        assert other.spec.grid[0] == teacher.spec.grid[0] + 1
        assert digest(other.spec.identity()) != digest(teacher.spec.identity())

    def test_at_a_size_that_is_not_square_it_gives_the_grid_of_that_size(self, teacher: Teacher) -> None:
        own, stride = square_side(teacher.spec.preprocessing.size_px, "this teacher"), teacher.spec.stride_px
        size_px = (own, own + 2 * stride)
        other = teacher.at_size(size_px)
        cls_BD, patch_BHWD = other(pixels(2, size_px))
        assert patch_BHWD.shape[1:3] == other.spec.grid == (own // stride, own // stride + 2)
        assert (cls_BD is None) == (other.spec.cls_dim is None)
        assert other.spec.identity()["preprocessing"]["size_px"] == [*size_px]
        assert other.spec.stride_px == stride
        with pytest.raises(BadInput, match=f"the nearest is {own}x{own + 2 * stride}"):
            teacher.at_size((own, own + 2 * stride + 1))

    def test_refuses_a_size_off_its_stride_and_names_the_nearest(self, teacher: Teacher) -> None:
        size_px = square_side(teacher.spec.preprocessing.size_px, "this teacher") + 1
        with pytest.raises(BadInput, match=f"the nearest is {size_px - 1}"):
            teacher.at_size(size_px)
        with pytest.raises(BadInput, match="not a multiple"):
            teacher(pixels(1, size_px))

    def test_refuses_pixels_that_are_already_floats(self, teacher: Teacher) -> None:
        with pytest.raises(BadInput, match="uint8"):
            teacher(pixels(1, teacher.spec.preprocessing.size_px).float())

    def test_bf16_is_another_identity_and_nearly_the_same_tokens(self, teacher: Teacher, spec: TeacherSpec) -> None:
        other = Teacher(replace(spec, precision="bf16"), teacher.encoder)
        batch = pixels(2, spec.preprocessing.size_px)
        cosine = nn.functional.cosine_similarity(other(batch).patch_BHWD, teacher(batch).patch_BHWD, dim=-1)
        assert cosine.mean() > 0.99
        assert other(batch).patch_BHWD.dtype == torch.float32
        assert digest(other.spec.identity()) != digest(spec.identity())

    def test_fp32_stays_fp32_inside_a_trainer_that_runs_under_autocast(self, teacher: Teacher) -> None:
        batch = pixels(1, teacher.spec.preprocessing.size_px)
        with torch.autocast("cpu", torch.bfloat16):
            inside = teacher(batch).patch_BHWD
        assert torch.equal(inside, teacher(batch).patch_BHWD)


class TestStrictWeights:
    def changed(self, spec: TeacherSpec, path: Path, change: str) -> TeacherSpec:
        tensors = read_weights(spec.weights_path)
        name = next(name for name in sorted(tensors) if tensors[name].ndim == 4)
        if change == "missing":
            del tensors[name]
        elif change == "unexpected":
            tensors["backbone.extra"] = torch.zeros(1)
        else:
            tensors[name] = tensors[name][:1]
        save_weights(tensors, path)
        run = spec.weights_path.parent.parent
        name = str(run) if (run / "model").is_dir() else spec.name
        return resolve_teacher(name, weights=path, size_px=spec.preprocessing.size_px)

    @pytest.mark.fault(17, "detected")
    @pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
    def test_a_file_that_does_not_fit_exactly_is_refused(self, spec: TeacherSpec, tmp_path: Path, change: str) -> None:
        changed = self.changed(spec, tmp_path / "changed.safetensors", change)
        assert changed.weights_sha256 != spec.weights_sha256
        with pytest.raises(BadInput, match=f"1 {change}"):
            load_teacher(changed)
