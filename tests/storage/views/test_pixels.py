"""A recorded view's pixels come from the store or from its image, all or nothing: the same bytes, and never those of a changed image."""

from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import BadImage, Pixels
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.input_size import SizePx
from eupe_pipeline.storage.views.pixels import are_stored, center_square, fill_pixels, origin_of_pixels, view_pixels
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec, cut, pixel_digest, render, resize
from eupe_pipeline.student.data.joined import JoinedViews
from numpy.typing import NDArray

ROWS = np.array([5, 40, 6])
STORED, OTHER = Input(16), Input(24)
FAILED = 7
REASON = "image 7: cannot be decoded"


@pytest.fixture(scope="module")
def views(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> ViewSet:
    """Views of the tiny store's images in a store of their own, with pixels of 16 px; image 7 failed."""
    store = FeatureStore.create(str(tmp_path_factory.mktemp("kept")))
    dataset = build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=8, pixels=StoredPixels(16)), images_per_shard=24)
    drawn = views.draw_shard(0)
    crops = [cut(views.dataset.read_image(row // 2), crop) for row, crop in enumerate(drawn.crop)]
    digests = np.stack([np.frombuffer(pixel_digest(crop), np.uint8) for crop in crops])
    pixels = np.stack([resize(crop, bool(drawn.flip[n]), 16) for n, crop in enumerate(crops)])
    digests[2 * FAILED : 2 * FAILED + 2], pixels[2 * FAILED : 2 * FAILED + 2] = 0, 0
    views.commit_shard(0, drawn._replace(digest=digests), {dataset.row(FAILED).id: REASON}, pixels)
    return views


def expected(views: ViewSet, rows: NDArray[np.int64], size_px: SizePx) -> Pixels:
    drawn = views.read(rows)
    images = [views.dataset.read_image(row // 2) for row in rows.tolist()]
    return np.stack([render(image, drawn.crop[n], bool(drawn.flip[n]), size_px) for n, image in enumerate(images)])


def memory(count: int, *inputs: Input) -> list[tuple[Input, Pixels]]:
    return [(one, np.zeros((count, *one.shape), np.uint8)) for one in inputs]


def test_stored_pixels_fill_every_output_of_their_input_without_an_image(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected(views, ROWS, 16)
    monkeypatch.setattr(views.dataset, "read_image", None)
    outputs = memory(3, STORED, STORED)
    fill_pixels(views, ROWS, views.read(ROWS), outputs)
    assert all(np.array_equal(out, wanted) for _, out in outputs)


def test_one_output_of_another_input_makes_all_of_them_come_from_the_images(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "read_pixels", None)
    outputs = memory(3, STORED, OTHER)
    fill_pixels(views, ROWS, views.read(ROWS), outputs)
    assert all(np.array_equal(out, expected(views, ROWS, one.size_px)) for one, out in outputs)


def test_an_image_is_decoded_once_for_neighbouring_rows(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = views.dataset.read_image, list[int]()
    wanted = expected(views, np.array([4, 5, 8]), 24)

    def counted(image: int) -> Pixels:
        seen.append(image)
        return read(image)

    monkeypatch.setattr(views.dataset, "read_image", counted)
    assert np.array_equal(view_pixels(views, np.array([4, 5, 8]), OTHER), wanted)
    assert seen == [2, 4]


@pytest.mark.parametrize("inputs", [[OTHER], []])
def test_an_image_that_gives_other_pixels_is_refused(views: ViewSet, inputs: list[Input], monkeypatch: pytest.MonkeyPatch) -> None:
    read = views.dataset.read_image
    monkeypatch.setattr(views.dataset, "read_image", lambda image: read(image) ^ np.uint8(image == 3))
    with pytest.raises(CacheMismatch, match=r"image class0/009\.png of photos.*pixel digest differs.*Pillow"):
        fill_pixels(views, np.array([5, 6, 7]), views.read(np.array([5, 6, 7])), memory(3, *inputs))
    with pytest.raises(CacheMismatch, match="pixel digest differs"):
        view_pixels(JoinedViews([views, views]), np.array([54]), OTHER)
    fill_pixels(views, np.array([5, 8]), views.read(np.array([5, 8])), memory(2, *inputs))


@pytest.mark.parametrize("wanted", [STORED, OTHER])
def test_an_image_that_failed_when_the_views_were_committed_fails_with_the_same_reason(views: ViewSet, wanted: Input) -> None:
    rows = np.array([13, 14, 15, 16])
    [(_, out)] = outputs = memory(4, wanted)
    failed: dict[str, str] = {}
    fill_pixels(views, rows, views.read(rows), outputs, failed=failed)
    assert failed == {"class0/021.png": REASON}
    assert np.array_equal(out[[0, 3]], expected(views, rows[[0, 3]], wanted.size_px))
    assert not out[1:3].any()
    with pytest.raises(BadImage, match=REASON):
        view_pixels(views, rows, wanted)
    with pytest.raises(BadImage, match=REASON):
        view_pixels(JoinedViews([views, views]), rows + 48, wanted)


def test_views_that_are_drawn_now_get_their_digests_and_an_image_that_cannot_be_decoded_gets_none(
    views: ViewSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = views.dataset.read_image

    def broken(image: int) -> Pixels:
        if image == 2:
            raise BadImage("no image")
        return read(image)

    monkeypatch.setattr(views.dataset, "read_image", broken)
    rows, drawn, failed = np.arange(2, 8), views.draw_shard(0), dict[str, str]()
    part = drawn.part(slice(2, 8))
    outputs = memory(6, STORED)
    fill_pixels(views, rows, part, outputs, drawn_now=True, failed=failed)
    recorded = views.read(rows)
    good = np.array([0, 1, 4, 5])
    assert failed == {"class0/006.png": "no image"}
    assert np.array_equal(part.digest[good], recorded.digest[good])
    assert not part.digest[2:4].any()
    assert np.array_equal(outputs[0][1][good], expected(views, rows[good], 16))
    with pytest.raises(BadImage, match="no image"):
        fill_pixels(views, rows, part, outputs, drawn_now=True)


def test_of_joined_views_every_row_has_the_pixels_of_its_own_part(tiny_store: Any, views: ViewSet) -> None:
    one = ViewSet.create(views.group.objects, views.dataset, ViewSpec(seed=2, pixels=StoredPixels(16)), images_per_shard=24)
    drawn = one.draw_shard(0)
    pixels = np.zeros((24, 16, 16, 3), np.uint8)
    fill_pixels(one, np.arange(24), drawn, [(STORED, pixels)], drawn_now=True)
    one.commit_shard(0, drawn, {}, pixels)
    both, rows = JoinedViews([one, views]), np.array([3, 24 + 40, 23, 24 + 5])  # one view an image, then two
    assert both.images_of(rows).tolist() == [3, 24 + 20, 23, 24 + 2]
    for wanted in (STORED, OTHER):
        found = view_pixels(both, rows, wanted)
        assert np.array_equal(found[[0, 2]], view_pixels(one, np.array([3, 23]), wanted))
        assert np.array_equal(found[[1, 3]], view_pixels(views, np.array([40, 5]), wanted))
    assert not are_stored(JoinedViews([views, tiny_store.features().views]), [STORED])


def test_it_is_said_where_pixels_come_from(tiny_store: Any, views: ViewSet) -> None:
    plain = tiny_store.features().views
    assert not are_stored(plain, {STORED})
    assert origin_of_pixels(plain, {STORED}) == "the images"
    assert are_stored(views, {STORED})
    assert not are_stored(views, set())
    assert origin_of_pixels(views, {STORED}) == "the pixels stored with the views (16 px, bicubic)"
    assert not are_stored(views, {STORED, OTHER})
    assert not are_stored(views, {Input(16, "bilinear")})
    assert origin_of_pixels(views, {STORED, OTHER}).endswith("do not serve 24 px bicubic")


def test_the_central_square_keeps_its_share_of_the_shorter_side() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)
    np.testing.assert_array_equal(center_square(image, Input(20)), image[:, 6:26])
    np.testing.assert_array_equal(center_square(image, Input(10), 0.5), image[5:15, 11:21])
