"""Whole and letterboxed views and inputs that are not square: geometry, exact padding, and one form of a size in every identity."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xxhash
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import Pixels
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.repair_views import repair_views
from eupe_pipeline.storage.views.input_size import SizePx, as_size, parse_size, size_hw, size_json, size_text
from eupe_pipeline.storage.views.letterbox import Content, Letterbox, cells_with_content
from eupe_pipeline.storage.views.pixels import center_square, view_pixels
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec, draw, fit, in_order, pixel_digest, render, resize
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ..made_up_store import drawn_with_digests, write_images

sides = st.integers(1, 3000)
sizes = st.tuples(st.integers(1, 600), st.integers(1, 600)).map(as_size)
letterboxes = st.builds(Letterbox, st.sampled_from(("end", "center")), st.tuples(*[st.integers(0, 255)] * 3))
OBLONG: SizePx = (24, 40)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_identities_of_square_crops_are_those_of_every_store_so_far() -> None:
    """Digests that stores were made with; sizes and kinds came later and must not change one of them."""
    distorted = ViewSpec(views_per_image=2, seed=7, photometric="teacher_same", pixels=StoredPixels(256))
    centre = ViewSpec(kind="center", crop_fraction=0.875, pixels=StoredPixels((64, 64), "bilinear"))
    assert digest(ViewSpec().identity()) == "c0667465b3288580ea0ef8951497e04d3aee00185ef94d7c82a0a418be30fd28"
    assert digest(distorted.identity()) == "29e2e7d04dcd212ccffab7d87f6b5f3adfc9d038a99b0abc08a31f8e65a61bec"
    assert digest(centre.identity()) == "ba551fa333c93f0cc4c83f5902b696fb111602cb6263633f3d34801034b2cabe"


SPECS = [
    ViewSpec(kind="whole", views_per_image=2, seed=3),
    ViewSpec(kind="letterbox", views_per_image=2, seed=3, pixels=StoredPixels(OBLONG)),
    ViewSpec(kind="letterbox", seed=3, photometric="student_only", pad_position="center", pad_rgb=(114, 114, 114)),
    ViewSpec(kind="center", crop_ratio=4 / 3, pixels=StoredPixels((384, 512))),
]
GOLDEN_IDENTITIES = [
    {"kind": "whole", "views_per_image": 2, "seed": 3, "flip_probability": 0.5, "photometric": "none"},
    {
        "kind": "letterbox", "views_per_image": 2, "seed": 3, "flip_probability": 0.5, "photometric": "none", "pad_position": "end",
        "pad_rgb": [124, 116, 104], "pixels": {"size_px": [24, 40], "interpolation": "bicubic"},
    },
    {
        "kind": "letterbox", "views_per_image": 1, "seed": 3, "flip_probability": 0.5, "photometric": "student_only",
        "pad_position": "center", "pad_rgb": [114, 114, 114],
        "distortion": {
            "jitter": [0.4, 0.4, 0.2, 0.1], "jitter_probability": 0.8, "blur_sigma": [0.1, 2.0], "blur_probability": 0.5,
            "solarize_threshold": 128, "solarize_probability": 0.2,
        },
    },
    {
        "kind": "center", "views_per_image": 1, "crop_fraction": 1.0, "crop_ratio": 4 / 3,
        "pixels": {"size_px": [384, 512], "interpolation": "bicubic"},
    },
]  # fmt: skip


@pytest.mark.parametrize(("spec", "golden"), list(zip(SPECS, GOLDEN_IDENTITIES, strict=True)))
def test_an_identity_names_what_decides_a_kind_and_comes_back(spec: ViewSpec, golden: dict[str, object]) -> None:
    assert spec.identity() == golden
    assert list(spec.identity()) == list(golden)
    assert ViewSpec.from_identity(spec.identity()).identity() == golden


def test_pixels_and_draws_of_each_kind_are_frozen_for_ever() -> None:
    """Blocks of colour, enlarged and shrunk; if this fails, a kind needs a new name, or the renderer one, not new numbers."""
    image = np.kron(noise(5, 8, seed=1), np.ones((6, 5, 1), np.uint8))  # 30 × 40
    found = {}
    for kind, size in product(("random_resized_crop", "center", "whole", "letterbox"), (32, OBLONG)):
        spec = ViewSpec(kind=kind, seed=4)  # type: ignore[arg-type]
        views = draw(spec, ["a/b.png"], np.array([[30, 40]], np.int32))
        pixels = render(image, views.crop[0], bool(views.flip[0]), size, letterbox=spec.letterbox)
        drawn = (*views.crop[0].tolist(), bool(views.flip[0]))
        found[kind, size_text(size)] = drawn, xxhash.xxh3_64_hexdigest(np.ascontiguousarray(pixels).data)
    assert found == GOLDEN_VIEWS


GOLDEN_VIEWS = {
    ("random_resized_crop", "32"): ((0, 0, 30, 34, True), "9580837c6e23f3e4"),
    ("random_resized_crop", "24x40"): ((0, 0, 30, 34, True), "23d82de5dab924df"),
    ("center", "32"): ((0, 5, 30, 30, False), "58dae051a1b98aca"),
    ("center", "24x40"): ((0, 5, 30, 30, False), "22785b2ba906a629"),
    ("whole", "32"): ((0, 0, 30, 40, True), "f11c5558ae961745"),
    ("whole", "24x40"): ((0, 0, 30, 40, True), "1dbb2b3fd107e6bf"),
    ("letterbox", "32"): ((0, 0, 30, 40, True), "69d94e1f0f7d5ccf"),
    ("letterbox", "24x40"): ((0, 0, 30, 40, True), "3542582ad366c80b"),
}


def test_flips_of_whole_images_are_those_of_the_same_seed() -> None:
    """One stream of values per view: kinds differ in what they make of it."""
    ids, size = [str(n) for n in range(40)], np.full((40, 2), 50, np.int32)
    flips = [draw(ViewSpec(kind=kind, views_per_image=2, seed=9), ids, size).flip.tolist() for kind in ("whole", "letterbox")]
    assert flips[0] == flips[1] == draw(ViewSpec(views_per_image=2, seed=9), ids, size).flip.tolist()
    assert 20 < sum(flips[0]) < 60


@pytest.mark.parametrize("kind", ["whole", "letterbox"])
@pytest.mark.parametrize("mode", ["teacher_same", "student_only"])
def test_whole_images_are_distorted_as_crops_of_the_same_seed_are(kind: str, mode: str) -> None:
    ids, size = ["a", "b"], np.full((2, 2), 50, np.int32)
    whole = draw(ViewSpec(kind=kind, views_per_image=2, photometric=mode), ids, size)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.photometric, draw(ViewSpec(views_per_image=2, photometric=mode), ids, size).photometric)
    assert whole.photometric.any()
    assert whole.crop.tolist() == [[0, 0, 50, 50]] * 4


@given(sides, sides, sizes, letterboxes)
def test_a_letterboxed_image_fills_one_side_keeps_its_shape_and_lies_inside(h: int, w: int, size: SizePx, letterbox: Letterbox) -> None:
    (top, left, height, width), (whole_h, whole_w) = letterbox.content((h, w), size), size_hw(size)
    assert 0 <= top < top + height <= whole_h
    assert 0 <= left < left + width <= whole_w
    assert height == whole_h or width == whole_w
    scale = min(whole_h / h, whole_w / w)
    assert abs(height - h * scale) <= 0.5 + 1e-9 or height == 1
    assert abs(width - w * scale) <= 0.5 + 1e-9 or width == 1
    below, right = whole_h - height - top, whole_w - width - left
    assert (top, left) == (0, 0) if letterbox.position == "end" else (below - top, right - left) <= (1, 1)
    assert below >= top
    assert right >= left


def test_the_shape_that_is_not_whole_is_rounded_halves_up_as_in_sam() -> None:
    """SAM: `int(side × scale + 0.5)`; COCO's 427×640 at 1024 is 683 rows."""
    assert Letterbox().content((427, 640), 1024) == Content(0, 0, 683, 1024)
    assert Letterbox().content((3, 2), 15) == Content(0, 0, 15, 10)
    assert Letterbox().content((2, 1), 5) == Content(0, 0, 5, 3)
    assert Letterbox("center").content((2, 1), 5) == Content(0, 1, 5, 3)
    assert Letterbox("center").content((100, 100), (384, 512)) == Content(0, 64, 384, 384)
    assert Letterbox("center").content((1, 3000), 32) == Content(15, 0, 1, 32)


@given(st.integers(1, 60), st.integers(1, 60), st.tuples(st.integers(1, 50), st.integers(1, 50)).map(as_size), letterboxes, st.booleans())
def test_padding_has_its_exact_colour_and_the_rest_is_the_resized_image(
    h: int, w: int, size: SizePx, letterbox: Letterbox, flip: bool
) -> None:
    image = noise(h, w)
    padded = fit(image, flip, Input(size), letterbox)
    top, left, height, width = letterbox.content((h, w), size)
    assert padded.shape == (*size_hw(size), 3)
    inside = np.zeros(padded.shape[:2], bool)
    inside[top : top + height, left : left + width] = True
    assert (padded[~inside] == letterbox.rgb).all()
    np.testing.assert_array_equal(padded[top : top + height, left : left + width], resize(image, flip, (height, width)))


@given(st.integers(1, 60), st.integers(1, 60), letterboxes)
def test_a_flip_mirrors_the_image_and_leaves_the_padding_where_it_is(h: int, w: int, letterbox: Letterbox) -> None:
    image, wanted = noise(h, w), Input((30, 40))
    top, left, height, width = letterbox.content((h, w), wanted.size_px)
    plain, flipped = (fit(image, flip, wanted, letterbox) for flip in (False, True))
    inside = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(flipped[inside], plain[inside][:, ::-1])
    restored = flipped.copy()
    restored[inside] = plain[inside]
    np.testing.assert_array_equal(restored, plain)


@pytest.mark.parametrize(("h", "w"), [(30, 40), (40, 30), (480, 641), (7, 200), (333, 250)])
@pytest.mark.parametrize("size", [64, (48, 80)])
def test_letterboxes_are_those_of_pillows_own_padding(h: int, w: int, size: SizePx) -> None:
    """`ImageOps.pad`, an independent restatement with the same filter; it rounds another way in exact halves alone."""
    height, width = size_hw(size)
    image = noise(h, w)
    theirs = ImageOps.pad(Image.fromarray(image), (width, height), Image.Resampling.BICUBIC, color=(124, 116, 104), centering=(0, 0))
    np.testing.assert_array_equal(fit(image, False, Input(size), Letterbox()), np.asarray(theirs))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([(32, (4, 4)), ((24, 40), (3, 5)), ((48, 32), (3, 2))]), letterboxes)
def test_a_cell_has_content_exactly_if_one_of_its_pixels_is_of_the_image(
    h: int, w: int, input_and_grid: tuple[SizePx, tuple[int, int]], letterbox: Letterbox
) -> None:
    size, (rows, columns) = input_and_grid
    content = letterbox.contents(np.array([[h, w], [w, h]]), size)
    touched_rows, touched_columns = cells_with_content(content, size, (rows, columns))
    for n, (top, left, height, width) in enumerate(content.tolist()):
        inside = np.zeros(size_hw(size), bool)
        inside[top : top + height, left : left + width] = True
        pixels_hw = inside.reshape(rows, inside.shape[0] // rows, columns, inside.shape[1] // columns).any(axis=(1, 3))
        np.testing.assert_array_equal(touched_rows[n][:, None] & touched_columns[n][None], pixels_hw)


def test_crops_and_whole_images_are_stretched_to_an_input_that_is_not_square() -> None:
    image, crop = noise(30, 50), np.array([2, 3, 20, 40], np.int32)
    theirs = Image.fromarray(image[2:22, 3:43]).resize((40, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(render(image, crop, False, OBLONG), np.asarray(theirs))
    np.testing.assert_array_equal(render(image, crop, True, OBLONG), np.asarray(theirs)[:, ::-1])


@given(sides, sides, st.floats(0.05, 1), st.floats(1 / 4, 4))
def test_centre_boxes_have_the_asked_shape_inside_the_image(h: int, w: int, fraction: float, ratio: float) -> None:
    top, left, height, width = draw(ViewSpec(kind="center", crop_fraction=fraction, crop_ratio=ratio), ["x"], np.array([[h, w]])).crop[0]
    assert 1 <= height <= h
    assert 1 <= width <= w
    assert abs(2 * top + height - h) <= 1
    assert abs(2 * left + width - w) <= 1
    assert abs(width - height * ratio) <= 0.5 + 0.5 * ratio + 1e-6 or 1 in (height, width)


def test_the_centre_of_an_image_has_the_shape_of_the_input() -> None:
    image = noise(30, 60)
    np.testing.assert_array_equal(center_square(image, Input((30, 40))), image[:, 10:50])
    np.testing.assert_array_equal(center_square(image, Input(30)), image[:, 15:45])


def test_stored_pixels_of_a_letterbox_that_is_not_square_are_the_rendered_ones_and_come_back_by_repair(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    dataset = build_index(store.objects, str(write_images(tmp_path / "images", 6)), "photos")
    spec = ViewSpec(kind="letterbox", views_per_image=2, seed=3, pad_position="center", pixels=StoredPixels(OBLONG))
    views = ViewSet.create(store.objects, dataset, spec, images_per_shard=3)
    drawn = [drawn_with_digests(views, shard) for shard in range(views.shards)]
    rows, size, padding = np.arange(views.rows), OBLONG, spec.letterbox
    images = [dataset.read_image(row // 2) for row in rows.tolist()]
    flips = [bool(flip) for one in drawn for flip in one.flip]
    expected = np.stack(
        [
            render(image, np.array([0, 0, *image.shape[:2]], np.int32), flip, size, letterbox=padding)
            for image, flip in zip(images, flips, strict=True)
        ]
    )
    for shard in range(views.shards):
        views.commit_shard(shard, drawn[shard], {}, expected[6 * shard : 6 * shard + 6])
    assert views.group.specs["pixels"].shape == (12, 24, 40, 3)
    np.testing.assert_array_equal(view_pixels(views, rows, Input(OBLONG)), expected)
    (tmp_path / "store" / "views" / views.key / "pixels" / "c.0.0.0.0").unlink()
    reopened = FeatureStore.open(str(tmp_path / "store")).view_set(views.key)
    repair_views(reopened, 0, set).write_to(reopened.group)
    np.testing.assert_array_equal(view_pixels(reopened, rows, Input(OBLONG)), expected)
    assert reopened.read_shard(0).digest[0].tobytes() == pixel_digest(dataset.read_image(0))  # type: ignore[union-attr]


@pytest.mark.parametrize(("given_size", "size", "written"), [(256, 256, 256), ([384, 512], (384, 512), [384, 512]), ((64, 64), 64, 64)])
def test_a_size_has_one_form(given_size: object, size: SizePx, written: object) -> None:
    assert as_size(given_size) == size
    assert size_json(size) == written
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "256", [256], [1, 2, 3], [384, 0], [384, 1.5], None, 1 << 20])
def test_what_is_no_size_is_refused(wrong: object) -> None:
    with pytest.raises(BadInput, match=r"expected the side of a square in pixels such as 256, or height and width such as"):
        as_size(wrong)


@pytest.mark.parametrize("wrong", ["", "x", "384x", "384x512x3", "384*512", "-1", "0", "384x0", "1e3", "٣"])
def test_text_that_is_no_size_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match="size"):
        parse_size(wrong)


def test_inputs_have_one_order_whatever_their_shapes() -> None:
    inputs = [Input((24, 40)), Input(24), Input(24, "bilinear"), Input((16, 90))]
    assert in_order({*inputs}) == in_order(reversed(inputs)) == [inputs[3], inputs[1], inputs[2], inputs[0]]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"kind": "letterbox", "pad_position": "middle"}, "position of padding"),
        ({"kind": "letterbox", "pad_rgb": (0, 0, 256)}, "colour of padding"),
        ({"kind": "letterbox", "pad_rgb": (0, 0)}, "colour of padding"),
        ({"kind": "center", "crop_ratio": 0.0}, "crop_ratio"),
        ({"kind": "whole", "views_per_image": 2, "flip_probability": 0.0}, "all alike"),
        ({"kind": "letterbox", "views_per_image": 2, "flip_probability": 1.0}, "all alike"),
        ({"kind": "center", "photometric": "teacher_same"}, "never distorted"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(values: dict[str, object], names: str) -> None:
    with pytest.raises(BadInput, match=names):
        ViewSpec(**values)  # type: ignore[arg-type]
