"""Distortions of letterboxed views are those of the image alone, and the padding keeps its colour to the level."""

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.views.letterbox import Content, Letterbox
from eupe_pipeline.storage.views.photometric import STORED_COLUMNS, Distortion
from eupe_pipeline.storage.views.view_spec import Input, fit, resize
from eupe_pipeline.teachers.encoders.photometric import PARAMETERS, apply_photometric, blur, contrast
from torch import Tensor

SIZES = [(40, 30), (30, 40), (25, 25), (9, 50)]


def images(letterbox: Letterbox, side: int) -> tuple[Tensor, list[Content], Tensor]:
    """Noise letterboxed, where each lies, and the four columns that say so."""
    random = np.random.default_rng(0)
    pixels = [fit(random.integers(0, 256, (*hw, 3), np.uint8), False, Input(side), letterbox) for hw in SIZES]
    shares = letterbox.shares(np.array(SIZES), side).astype(np.float32)
    return torch.from_numpy(np.stack(pixels)), [letterbox.content(hw, side) for hw in SIZES], torch.from_numpy(shares)


def parameters(count: int, **changes: float) -> Tensor:
    row = [changes.get(name, 0.0) for name in PARAMETERS] + [0.0] * (STORED_COLUMNS - len(PARAMETERS))
    return torch.tensor([row] * count)


def alone(image_HWC: Tensor, values: dict[str, float], side: int) -> Tensor:
    """The image distorted without padding, its blur in pixels of the whole input."""
    sigma, others = values.get("blur", 0.0), {name: value for name, value in values.items() if name not in ("blur", "solarize")}
    x = image_HWC.permute(2, 0, 1)[None].float() / 255
    if "contrast" in others:
        x = contrast(x, torch.tensor([1 + others["contrast"]]))
    if sigma:
        half = min(max(1, round(4 * side / 256)), side - 1)
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        assert half == 1
        x = blur(padded, torch.tensor([sigma * side / 256]), half)[..., 1:-1, 1:-1]
    x = (x * 255).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0)
    return x


@pytest.mark.parametrize("position", ["end", "center"])
@pytest.mark.parametrize("values", [{"contrast": 0.4}, {"contrast": -0.4}, {"blur": 1.7}])
def test_the_image_is_distorted_as_it_would_be_alone(position: str, values: dict[str, float]) -> None:
    side = 48
    pixels, content, shares = images(Letterbox(position, (0, 0, 0)), side)  # type: ignore[arg-type]
    found = apply_photometric(pixels, torch.cat([parameters(len(pixels), **values), shares], dim=1))
    for n, (top, left, height, width) in enumerate(content):
        inside = np.s_[top : top + height, left : left + width]
        assert torch.equal(found[n][inside], alone(pixels[n][inside], values, side))


@pytest.mark.parametrize("position", ["end", "center"])
def test_the_padding_keeps_its_colour_and_zeros_give_the_view_back(position: str) -> None:
    letterbox = Letterbox(position, (200, 114, 3))  # type: ignore[arg-type]
    pixels, content, shares = images(letterbox, 48)
    assert torch.equal(apply_photometric(pixels, torch.cat([parameters(len(pixels)), shares], dim=1)), pixels)
    drawn = torch.tensor([Distortion(1 * (0.4,) * 3 + (0.1,), 1, (1.0, 2.0), 1, 64, 1).draw([0.0] * 3 + [0.9] * 5)] * len(pixels))
    found = apply_photometric(pixels, torch.cat([drawn, shares], dim=1))
    for n, (top, left, height, width) in enumerate(content):
        outside = torch.ones(48, 48, dtype=torch.bool)
        outside[top : top + height, left : left + width] = False
        assert (found[n][outside] == torch.tensor([200, 114, 3], dtype=torch.uint8)).all()
        assert not torch.equal(found[n][~outside], pixels[n][~outside])


def test_an_image_that_fills_its_input_is_distorted_as_any_other_view() -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8))
    drawn = torch.tensor([Distortion().draw([0.0] * 3 + [0.3] * 5)] * 2)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    assert torch.equal(apply_photometric(pixels, torch.cat([drawn, whole], dim=1)), apply_photometric(pixels, drawn))


def test_a_view_comes_out_the_same_in_any_batch() -> None:
    pixels, _, shares = images(Letterbox("center"), 48)
    drawn = torch.cat([torch.tensor([Distortion().draw([0.0] * 3 + [n / 5] * 5) for n in range(len(pixels))]), shares], dim=1)
    together = apply_photometric(pixels, drawn)
    for n in range(len(pixels)):
        assert torch.equal(apply_photometric(pixels[n : n + 1], drawn[n : n + 1])[0], together[n])


def test_pixels_of_a_resize_are_those_that_are_padded() -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 40, 3), np.uint8)
    np.testing.assert_array_equal(fit(image, False, Input(48), Letterbox())[:24], resize(image, False, (24, 48)))
