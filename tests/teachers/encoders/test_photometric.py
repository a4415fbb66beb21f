"""Each distortion against torchvision and Pillow, each image under its own parameters, rows of zeros bit by bit unchanged."""

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.photometric import PARAMETERS, apply_photometric
from eupe_pipeline.teachers.runtime import torchvision_guard
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

torchvision_guard.install()


def photos(count: int = 4, height: int = 37, width: int = 45) -> Tensor:
    """Smooth colours with noise, black, white and grey patches."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(coarse).astype(int) + random.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
        pixels[:4, :4], pixels[:4, 4:8], pixels[:4, 8:12] = 0, 255, 127
        found.append(pixels)
    return torch.from_numpy(np.stack(found))


def parameters(**changes: float) -> Tensor:
    return torch.tensor([[changes.get(name, 0.0) for name in PARAMETERS]])


def distorted(image_HWC: Tensor, **changes: float) -> Tensor:
    return apply_photometric(image_HWC[None], parameters(**changes))[0]


def largest_difference(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


TORCHVISION = [
    ("brightness", 0.6, "adjust_brightness"), ("brightness", 1.4, "adjust_brightness"), ("contrast", 0.6, "adjust_contrast"),
    ("contrast", 1.4, "adjust_contrast"), ("saturation", 0.8, "adjust_saturation"), ("saturation", 1.2, "adjust_saturation"),
    ("hue", 0.1, "adjust_hue"), ("hue", -0.1, "adjust_hue"), ("hue", 0.5, "adjust_hue"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "function"), TORCHVISION)
def test_colours_change_as_torchvisions_do(name: str, value: float, function: str) -> None:
    from torchvision.transforms.v2 import functional

    for image in photos():
        expected = getattr(functional, function)(image.permute(2, 0, 1).float() / 255, value)
        found = distorted(image, **{name: value if name == "hue" else value - 1})
        assert largest_difference(found, (expected * 255).round().to(torch.uint8).permute(1, 2, 0)) <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize(("side", "kernel"), [(256, 9), (128, 5), (384, 13)])
def test_blur_is_torchvisions_and_grows_with_the_side(sigma: float, side: int, kernel: int) -> None:
    from torchvision.transforms.v2 import functional

    for image in photos(2, side, side):
        expected = functional.gaussian_blur(image.permute(2, 0, 1).float() / 255, [kernel] * 2, [sigma * side / 256] * 2)
        found = distorted(image, blur=sigma)
        assert largest_difference(found, (expected * 255).round().to(torch.uint8).permute(1, 2, 0)) <= 1


@pytest.mark.parametrize("side", [1, 2, 3, 16])
def test_images_of_a_few_pixels_can_be_distorted(side: int) -> None:
    everything = parameters(brightness=0.3, contrast=-0.3, saturation=0.2, hue=0.1, blur=2.0, solarize=128)
    assert apply_photometric(torch.full((1, side, side, 3), 77, dtype=torch.uint8), everything).shape == (1, side, side, 3)


def test_one_view_looks_alike_at_every_size() -> None:
    large = photos(1, 256, 256)
    small = large[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)  # the same picture, in blocks of 2 × 2
    blurred = [apply_photometric(one, parameters(blur=2.0)).float() for one in (small[:, ::2, ::2], small)]
    at_half = torch.nn.functional.avg_pool2d(blurred[1].permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert (blurred[0] - at_half).abs().mean() < 1


@pytest.mark.parametrize(("name", "value", "enhance"), [
    ("brightness", 1.3, ImageEnhance.Brightness), ("contrast", 0.7, ImageEnhance.Contrast), ("saturation", 1.2, ImageEnhance.Color),
])  # fmt: skip
def test_colours_change_as_pillows_do_up_to_its_rounding(name: str, value: float, enhance: type[ImageEnhance.Brightness]) -> None:
    for image in photos():
        expected = np.array(enhance(Image.fromarray(image.numpy())).enhance(value))
        assert largest_difference(distorted(image, **{name: value - 1}), torch.from_numpy(expected)) <= 2


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarisation_is_pillows_exactly(threshold: int) -> None:
    for image in photos():
        expected = np.array(ImageOps.solarize(Image.fromarray(image.numpy()), threshold))
        assert torch.equal(distorted(image, solarize=256 - threshold), torch.from_numpy(expected))


def test_rows_of_zeros_give_their_images_back_beside_others_that_change() -> None:
    images = photos(3)
    rows = torch.cat([parameters(), parameters(brightness=-0.5, hue=0.2, blur=1.0, solarize=128), parameters()])
    found = apply_photometric(images, rows)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[2], images[2])
    assert not torch.equal(found[1], images[1])


@pytest.mark.parametrize(("height", "width"), [(37, 45), (16, 16), (64, 64)])
def test_each_image_is_distorted_to_the_bit_as_if_it_were_alone(height: int, width: int) -> None:
    images, random = photos(5, height, width), np.random.default_rng(3)
    rows = torch.tensor(
        [[*random.uniform(-0.4, 0.4, 3), random.uniform(-0.1, 0.1), random.uniform(0.1, 2), 128.0 * (n % 2), 0.0, 0.0] for n in range(5)],
        dtype=torch.float32,
    )
    together = apply_photometric(images, rows)
    for first, last in ((0, 1), (1, 2), (2, 5), (1, 4)):
        assert torch.equal(apply_photometric(images[first:last], rows[first:last]), together[first:last])


def test_the_hue_comes_back_after_a_whole_turn() -> None:
    image = photos(1)[0]
    assert largest_difference(distorted(distorted(image, hue=0.5), hue=0.5), image) <= 1


def test_other_shapes_and_types_are_refused() -> None:
    with pytest.raises(BadInput, match="uint8 pixels"):
        apply_photometric(photos(1).float(), parameters())
    with pytest.raises(BadInput, match="need photometric parameters"):
        apply_photometric(photos(2), parameters())
    with pytest.raises(BadInput, match="need photometric parameters"):
        apply_photometric(photos(1), torch.zeros(1, 3))
