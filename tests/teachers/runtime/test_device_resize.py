"""Views resized in a batch by matrix products: the bytes of the renderer on the host, whatever is in the batch; here on a CPU."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.views import torch_resize
from eupe_pipeline.storage.views.cut_pixels import SLACK_PX
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.renderers import INTERPOLATIONS, PILLOW, fast
from eupe_pipeline.storage.views.view_spec import Input, fit
from eupe_pipeline.teachers.runtime import device_resize
from eupe_pipeline.teachers.runtime.device_resize import CutViews, SentViews, require_device_renderer, require_same_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")
SIDES = st.integers(1, 90)
CROPS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200), st.booleans()), min_size=1, max_size=6)
LETTERBOXES = st.sampled_from([None, Letterbox(), Letterbox("center", (1, 2, 3))])


def crop(height: int, width: int, seed: int) -> Pixels:
    """Noise, of every other seed black and white: where sums leave the range of a byte."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return noise if seed % 2 else np.where(noise > 127, np.uint8(255), np.uint8(0))


def cut_and_fit(
    shapes: Sequence[tuple[int, int, bool]], wanted: Input, letterbox: Letterbox | None, seed: int = 0, split: int = 0
) -> tuple[CutViews, Pixels]:
    """The crops, cut in two parts; and rendered on the host. What nothing was written to is full of rubbish."""
    views = CutViews.allocate(wanted, letterbox, len(shapes), pin=False)
    views.pixels.fill_(77)
    expected = np.zeros((len(shapes), *wanted.shape), np.uint8)
    for start, stop in ((0, split), (split, len(shapes))):
        part = views.part(start, stop)
        for n, (height, width, flip) in enumerate(shapes[start:stop]):
            source = crop(height, width, seed + start + n)
            part.put(n, source, flip, letterbox, fast())
            fit(source, flip, wanted, letterbox, fast(), expected[start + n])
    return views, expected


@settings(max_examples=25)
@given(CROPS, SIDES, SIDES, st.sampled_from(sorted(INTERPOLATIONS)), LETTERBOXES, st.integers(0, 5), st.integers(0, 99))
def test_a_batch_has_the_bytes_of_the_renderer(
    shapes: list[tuple[int, int, bool]], height: int, width: int, interpolation: str, letterbox: Letterbox | None, split: int, seed: int
) -> None:
    views, expected = cut_and_fit(shapes, Input((height, width), interpolation), letterbox, seed, min(split, len(shapes)))
    np.testing.assert_array_equal(views.to(CPU).resized().numpy(), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("px", [224, 256, 384])
def test_views_of_the_usual_sizes_too(px: int, interpolation: str) -> None:
    shapes = [(375, 500, False), (211, 333, True), (px, px, True), (2 * px, 2 * px, False), (100, 90, True), (px // 2, 3 * px, False)]
    views, expected = cut_and_fit(shapes, Input(px, interpolation), None, split=2)
    np.testing.assert_array_equal(views.to(CPU).resized().numpy(), expected)


SHAPES = [(90, 40, True), (33, 41, False), (7, 60, True), (64, 64, False), (120, 31, False)]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_fewer_bits_are_exact_as_well(precision: str) -> None:
    """What trains in TF32 says "high", which on a CPU means nothing; "medium" is bf16 where the processor has it."""
    views, expected = cut_and_fit(SHAPES, Input(32), None)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            found = views.to(CPU).resized()
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_neither_windows_nor_the_order_nor_gaps_between_the_parts_change_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    views, expected = cut_and_fit(SHAPES, Input((48, 40)), Letterbox(), split=3)
    for window in (slice(1, 2), slice(2, 5), slice(0, 4)):
        np.testing.assert_array_equal(views[window].to(CPU).resized().numpy(), expected[window])
    packed, runs = device_resize._without_gaps(views.boxes.numpy())
    assert len(runs) == 2
    assert sum(stop - start for start, stop in runs) == sum(height * width for height, width, _ in SHAPES)
    pixels = torch.cat([*(views.pixels[start:stop] for start, stop in runs), torch.zeros((SLACK_PX, 3), dtype=torch.uint8)])
    sent = SentViews(views.wanted, views.letterbox, packed, pixels, torch.from_numpy(packed))
    np.testing.assert_array_equal(sent.resized().numpy(), expected)
    monkeypatch.setattr(device_resize, "_MOST_PIXELS", 4000)
    assert [(window.start, window.stop) for window in sent._windows()] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    np.testing.assert_array_equal(sent.resized().numpy(), expected)


@pytest.mark.parametrize("letterbox", [None, Letterbox("center", (9, 8, 7))])
def test_a_view_that_nothing_was_put_for_is_black(letterbox: Letterbox | None) -> None:
    views, expected = cut_and_fit(SHAPES, Input(16), letterbox)
    part, whole = views.part(0, len(SHAPES)), expected.copy()
    for n in (1, 3):
        height, width, flip = SHAPES[n]
        part.put(n, crop(height, width, n), flip, letterbox, fast())
    whole[[0, 2, 4]] = 0
    np.testing.assert_array_equal(views.to(CPU).resized().numpy(), whole)
    views.part(0, len(SHAPES))
    assert not views.to(CPU).resized().any()


def test_a_device_that_gives_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_bytes(CPU)
    rounded = device_resize._rounded
    monkeypatch.setattr(device_resize, "_rounded", lambda side, upper, lower: rounded(side, upper, lower + 1))  # a sum that is one off
    with pytest.raises(CacheMismatch, match=r"cpu resizes to other bytes than torch .* --resize host"):
        require_same_bytes(CPU)


def test_pillows_views_are_refused_and_a_machine_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"Pillow resizes these views.*--resize host"):
        require_device_renderer([PILLOW])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[dict[str, object]] = []
    require_device_renderer([PILLOW, fast()], said.append)
    assert ["without a CUDA device" in str(event["text"]) for event in said] == [True]


def test_every_interpolation_of_a_model_is_known_by_its_probes() -> None:
    assert {probe.interpolation for probe in torch_resize.probes()} == set(INTERPOLATIONS)
