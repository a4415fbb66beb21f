"""Teachers at inputs that are not square: refused before anything is computed where positions are made for one size; SAM's own padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.input_size import SizePx, as_size, size_hw
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.view_spec import Input, fit
from eupe_pipeline.teachers.encoders.own_encoder import OwnTeacher
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.runtime import torchvision_guard
from torch import nn

torchvision_guard.install()


@pytest.mark.parametrize("size", [(128, 160), 160])
def test_a_teacher_of_timm_that_is_made_for_one_size_is_refused_at_another_before_anything_is_computed(size: SizePx) -> None:
    height, width = size_hw(size)
    with pytest.raises(BadInput, match=rf"timm:mixer_s16_224 does not take {height}x{width} px, .*timm \S+ says"):
        resolve_teacher("timm:mixer_s16_224", size_px=size, allow_random_weights=True)
    assert resolve_teacher("timm:mixer_s16_224", allow_random_weights=True).grid == (14, 14)


def test_a_teacher_of_timm_that_resamples_its_positions_gives_the_grid_of_an_oblong() -> None:
    spec = resolve_teacher("timm:vit_tiny_patch16_224", size_px=(32, 64), allow_random_weights=True)
    assert spec.grid == (2, 4)
    assert load_teacher(spec)(torch.zeros(1, 32, 64, 3, dtype=torch.uint8)).patch_BHWD.shape == (1, 2, 4, 192)


class Means(nn.Module):
    """Mean colours of 8 px cells."""

    def forward(self, pixels_BCHW: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, nn.functional.avg_pool2d(pixels_BCHW, 8).permute(0, 2, 3, 1)


def test_a_teacher_of_ones_own_declares_an_oblong_or_is_asked_for_one(tmp_path: Path) -> None:
    assert OwnTeacher(Means(), "means", (16, 24), 8, "none").preprocessing.size_px == (16, 24)
    with pytest.raises(BadInput, match="size_px is a count of pixels"):
        OwnTeacher(Means(), "means", (16, 0), 8, "none")
    file = tmp_path / "means.py"
    file.write_text(
        "from torch import nn\nfrom eupe_pipeline.teachers.encoders.own_encoder import OwnTeacher\n"
        "class Means(nn.Module):\n"
        "    def forward(self, x):\n        return None, nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1)\n"
        "def build(weights):\n    return OwnTeacher(Means(), name='means', size_px=(16, 24), stride_px=8, cls='none')\n"
    )
    assert resolve_teacher(f"{file}:build").grid == (2, 3)
    spec = resolve_teacher(f"{file}:build", size_px=(24, 16))
    assert spec.grid == (3, 2)
    tokens = load_teacher(spec)(torch.arange(24 * 16 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(1, 24, 16, 3))
    assert tokens.patch_BHWD.shape == (1, 3, 2, 3)
    with pytest.raises(BadInput, match="16x20 px is not a multiple of its stride of 8 px"):
        resolve_teacher(f"{file}:build", size_px=(16, 20))


@pytest.mark.parametrize(
    ("height_width", "sides"),
    [
        *[(height_width, (256, 256)) for height_width in ((427, 640), (640, 427), (30, 40), (333, 250), (101, 200))],
        *[(height_width, (192, 256)) for height_width in ((427, 640), (30, 40), (101, 200))],  # whose longest side fills such an input
    ],
)
def test_letterboxes_are_those_of_sams_own_processor(height_width: tuple[int, int], sides: tuple[int, int]) -> None:
    """transformers' resize of the longest side and padding at the right and the bottom, in the filter that it has: bit by bit."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    height, width = sides
    image = np.random.default_rng(0).integers(0, 256, (*height_width, 3), np.uint8)
    processor = SamImageProcessorPil(
        size={"longest_edge": width}, pad_size={"height": height, "width": width}, do_rescale=False, do_normalize=False,
        do_convert_rgb=False,
    )  # fmt: skip
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
    ours = fit(image, False, Input(as_size([height, width]), "bilinear"), Letterbox("end", (0, 0, 0)))
    np.testing.assert_array_equal(ours, theirs)
