"""Where a batch's pixels come from is a step's choice, all or nothing; both ways give the same bytes."""

from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import Pixels
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec, cut, pixel_digest, render, resize
from eupe_pipeline.student.data.pixels import are_stored, fill_pixels, origin
from eupe_pipeline.student.data.stream import as_all_see
from eupe_pipeline.student.data.targets import STUDENT, Rendering
from eupe_pipeline.teachers.encoders.photometric import apply_photometric

ROWS = np.array([5, 40, 6])
STORED, OTHER = Rendering(STUDENT, 16, "bicubic"), Rendering("t", 24, "bicubic")


@pytest.fixture(scope="module")
def views(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> ViewSet:
    """Views of the tiny store's images in a store of their own, with pixels of 16 px."""
    store = FeatureStore.create(str(tmp_path_factory.mktemp("kept")))
    dataset = build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=8, pixels=StoredPixels(16)), images_per_shard=24)
    drawn = views.draw_shard(0)
    crops = [cut(views.dataset.read_image(row // 2), crop) for row, crop in enumerate(drawn.crop)]
    digests = np.stack([np.frombuffer(pixel_digest(crop), np.uint8) for crop in crops])
    pixels = np.stack([resize(crop, bool(drawn.flip[n]), 16) for n, crop in enumerate(crops)])
    views.commit_shard(0, drawn._replace(digest=digests), {}, pixels)
    return views


def memory(*renderings: Rendering) -> list[tuple[Rendering, Pixels]]:
    return [(one, np.zeros((3, one.size_px, one.size_px, 3), np.uint8)) for one in renderings]


def fill(views: ViewSet, outputs: list[tuple[Rendering, Pixels]]) -> None:
    fill_pixels(views, ROWS, ROWS // 2, views.read(ROWS), outputs)


def test_stored_pixels_fill_every_output_of_their_size_without_an_image(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = views.read(ROWS)
    images = [views.dataset.read_image(row // 2) for row in ROWS.tolist()]
    monkeypatch.setattr(views.dataset, "read_image", None)
    outputs = memory(STORED, STORED._replace(key="t"))
    fill(views, outputs)
    for n, image in enumerate(images):
        expected = render(image, drawn.crop[n], bool(drawn.flip[n]), 16)
        assert all(np.array_equal(out[n], expected) for _, out in outputs)


def test_one_output_of_another_size_makes_the_step_decode(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "read_pixels", None)
    drawn = views.read(ROWS)
    outputs = memory(STORED, OTHER)
    fill(views, outputs)
    for n, row in enumerate(ROWS.tolist()):
        for rendering, out in outputs:
            image = views.dataset.read_image(row // 2)
            assert np.array_equal(out[n], render(image, drawn.crop[n], bool(drawn.flip[n]), rendering.size_px))


def test_a_run_says_where_its_pixels_come_from(tiny_store: Any, views: ViewSet) -> None:
    plain = tiny_store.features().views
    assert not are_stored(plain, {(16, "bicubic")})
    assert origin(plain, {(16, "bicubic")}) == "the images"
    assert are_stored(views, {(16, "bicubic")})
    assert origin(views, {(16, "bicubic")}) == "the pixels stored with the views (16 px, bicubic)"
    assert not are_stored(views, {(16, "bicubic"), (24, "bicubic")})
    assert not are_stored(views, {(16, "bilinear")})
    assert origin(views, {(16, "bicubic"), (24, "bicubic")}).endswith("do not serve 24 px bicubic")


@pytest.mark.parametrize(("mode", "student", "teacher"), [
    ("none", False, False), ("teacher_same", True, True), ("student_only", True, False),
])  # fmt: skip
def test_a_mode_says_who_sees_the_distortion(mode: str, student: bool, teacher: bool) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    parameters = torch.tensor([[0.3, 0.1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0.1, 1.0, 128, 0, 0]])
    tensors = {"pixels/student": pixels, "pixels/t": pixels, "photometric": parameters, "t/cls": torch.ones(2, 3)}
    seen = as_all_see(mode, tensors)
    distorted = apply_photometric(pixels, parameters)
    assert torch.equal(seen["pixels/student"], distorted if student else pixels)
    assert torch.equal(seen["pixels/t"], distorted if teacher else pixels)
    assert seen["t/cls"] is tensors["t/cls"]
    assert torch.equal(tensors["pixels/student"], pixels)
