"""An image is read as stored or upright, the same for every format; its header, its pixels and the index agree."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.labelled_features import open_data
from eupe_pipeline.storage.core.choices import ORIENTATIONS, Orientation
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.dataset import read_description
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.index import IndexOptions, index
from eupe_pipeline.storage.sources.decode import decode_image, image_header, image_size_hw, orientation_of, stored_values
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.lost_identities import lost_views_identity
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.view_set import ViewSet, views_identity
from eupe_pipeline.storage.views.view_spec import ViewSpec, cut, draw, pixel_digest
from numpy.typing import NDArray
from PIL import Image

EXIF = 0x0112
LEVELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'

# The definition (EXIF 2.32, tag 274): where the stored row 0 and column 0 are in the picture that a viewer shows.
UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def encoded(kind: str, orientation: int | None, pixels: NDArray[Any] = LEVELS, **values: Any) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[EXIF] = orientation
    Image.fromarray(pixels).save(buffer, kind, exif=exif.tobytes() if kind != "TIFF" else exif, **values)
    return buffer.getvalue()


def png_with_exif_behind_its_pixels(orientation: int) -> bytes:
    data = encoded("PNG", orientation)
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    return data[:start] + data[stop:end] + data[start:stop] + data[end:]


FILES: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda n: encoded("JPEG", n, quality=100, subsampling=0),
    "jpeg with XMP": lambda n: encoded("JPEG", None, quality=100, subsampling=0, xmp=XMP % n),
    "png": lambda n: encoded("PNG", n),
    "png, exif behind its pixels": png_with_exif_behind_its_pixels,
    "webp": lambda n: encoded("WEBP", n, lossless=True),
    "tiff": lambda n: encoded("TIFF", n),
    "tiff, deflate": lambda n: encoded("TIFF", n, compression="tiff_adobe_deflate"),
    "tiff, lzw": lambda n: encoded("TIFF", n, compression="tiff_lzw"),
    "tiff, 16 bits": lambda n: encoded("TIFF", n, LEVELS[..., 0].astype(np.uint16) * 257),
    "png, 16 bits": lambda n: encoded("PNG", n, LEVELS[..., 0].astype(np.uint16) * 257),
    "tiff, grey": lambda n: encoded("TIFF", n, LEVELS[..., 0]),
    "tiff, CMYK": lambda n: encoded("TIFF", n, np.asarray(Image.fromarray(LEVELS).convert("CMYK"))[..., :4]),
}


def plain(name: str) -> NDArray[Any]:
    """The pixels of the same file without an orientation."""
    pixels = decode_image(FILES[name](1), where="x")
    if "jpeg" not in name and "CMYK" not in name:
        wanted = LEVELS if name in ("png", "webp", "tiff") or "behind" in name or "deflate" in name or "lzw" in name else LEVELS[..., :1]
        np.testing.assert_array_equal(pixels, np.broadcast_to(wanted, pixels.shape))
    return pixels


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_turned_once_or_not_at_all_and_its_header_agrees(name: str) -> None:
    as_stored = plain(name)
    for number, turn in UPRIGHT.items():
        data = FILES[name](number)
        assert image_header(data, where="x").orientation == number
        wanted: dict[Orientation, NDArray[Any]] = {"stored": as_stored, "upright": turn(as_stored)}
        for orientation, pixels in wanted.items():
            found = decode_image(data, where="x", orientation=orientation)
            np.testing.assert_array_equal(found, pixels, err_msg=f"{number} {orientation}")
            assert found.flags.c_contiguous
            assert image_size_hw(data, where="x", orientation=orientation) == found.shape[:2]


def test_masks_are_read_as_stored_in_every_format() -> None:
    mask = np.arange(240, dtype=np.uint8).reshape(12, 20)
    for number in UPRIGHT:
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(stored_values(encoded(kind, number, mask), where="x"), mask)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(9)])
def test_broken_exif_turns_nothing(exif: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue(), where="x", orientation="upright").shape == (12, 20, 3)
    assert image_header(buffer.getvalue(), where="x").orientation == 1


@pytest.mark.parametrize("number", [0, 9, 65_535])
def test_orientations_that_mean_nothing_turn_nothing(number: int) -> None:
    for kind in ("JPEG", "PNG", "TIFF"):
        assert decode_image(encoded(kind, number), where="x", orientation="upright").shape == (12, 20, 3)
        assert image_header(encoded(kind, number), where="x").orientation == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight orientations in two formats, each picture with pixels of its own."""
    (tmp_path / "photos").mkdir()
    for number in UPRIGHT:
        for kind in ("png", "tiff"):
            (tmp_path / "photos" / f"{number}.{kind}").write_bytes(encoded(kind.upper(), number, LEVELS ^ np.uint8(number)))
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


def test_an_index_is_of_upright_or_of_stored_images_and_all_that_follows_is_too(photos: Path, store: FeatureStore) -> None:
    upright = build_index(store.objects, str(photos), "photos")
    stored = build_index(store.objects, str(photos), "photos", orientation="stored")
    assert upright.digest != stored.digest
    for made, orientation in ((upright, "upright"), (stored, "stored")):
        dataset = store.dataset(made.key)
        assert (dataset.orientation, dataset.oriented) == (orientation, 14)
        for image in range(len(dataset)):
            number = int(dataset.row(image).id.split(".")[0])
            pixels = (UPRIGHT[number] if orientation == "upright" else UPRIGHT[1])(LEVELS ^ np.uint8(number))
            np.testing.assert_array_equal(dataset.read_image(image), pixels)
            assert tuple(dataset.sizes_hw(image, image + 1)[0]) == pixels.shape[:2]
        spec = ViewSpec(kind="center")
        views = ViewSet.create(store.objects, dataset, spec, 16)
        assert views.identity["decoder"]["orientation"] == {"upright": "upright", "stored": "as stored"}[orientation]
        drawn = draw(spec, dataset.ids(0, 16), dataset.sizes_hw(0, 16))
        crops = [cut(dataset.read_image(image), crop) for image, crop in enumerate(drawn.crop)]
        digests = np.stack([np.frombuffer(pixel_digest(crop), np.uint8) for crop in crops])
        views.commit_shard(0, drawn._replace(digest=digests), {})


def test_a_half_turn_alone_makes_another_dataset(tmp_path: Path, store: FeatureStore) -> None:
    """Sizes and bytes are those of the stored images; the pixels are not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(encoded("JPEG", 3))
    kinds: tuple[Orientation, ...] = ("upright", "stored")
    made = [build_index(store.objects, str(tmp_path / "photos"), "photos", orientation=one) for one in kinds]
    assert made[0].digest != made[1].digest
    assert views_identity(made[0], ViewSpec(), 8) != views_identity(made[1], ViewSpec(), 8)


def test_without_an_orientation_both_are_one_dataset_and_its_identity_is_that_of_before(tmp_path: Path, store: FeatureStore) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(encoded("PNG", 1))
    kinds: tuple[Orientation, ...] = ("upright", "stored")
    made = [build_index(store.objects, str(tmp_path / "photos"), "photos", orientation=one) for one in kinds]
    assert made[0].key == made[1].key
    assert made[0].orientation == "stored"
    assert not {"orientation", "oriented"} & set(read_description(store.objects, f"datasets/{made[0].key}"))


def test_index_says_how_many_images_carry_an_orientation(photos: Path, tmp_path: Path) -> None:
    said: list[Mapping[str, Any]] = []
    options = IndexOptions(str(photos), str(tmp_path / "store"), "photos", 0.0)
    result = index(options, said.append)
    assert (result["orientation"], result["images_with_orientation"]) == ("upright", 14)
    assert any("14 images of photos carry an orientation other than 1 and are turned upright" in event.get("text", "") for event in said)
    assert index(replace(options, name="as-stored", orientation="stored"))["images_with_orientation"] == 14
    assert index(replace(options, verify=True))["unchanged"]
    with pytest.raises(BadInput, match="was indexed upright, not stored"):
        index(replace(options, verify=True, orientation="stored"))


def test_an_evaluation_reads_folders_and_named_datasets_as_stored(photos: Path, store: FeatureStore) -> None:
    upright = build_index(store.objects, str(photos), "photos")
    found = open_data(store, str(photos))
    assert (found.orientation, found.indexed) == ("stored", "stored")
    assert open_data(store, str(photos)).key == found.key
    named = open_data(store, upright.key)
    assert (named.key, named.orientation, named.indexed) == (upright.key, "stored", "upright")


def test_a_dataset_that_is_read_otherwise_than_indexed_keeps_its_rows_and_has_other_pixels_and_sizes(
    photos: Path, store: FeatureStore
) -> None:
    """It is read as one that was indexed so, its views are their own set, and whoever opens that set reads as its identity says."""
    upright, stored = (build_index(store.objects, str(photos), "photos", orientation=one) for one in ORIENTATIONS[::-1])
    read = upright.read_as("stored")
    assert (read.key, read.digest, upright.orientation) == (upright.key, upright.digest, "upright")
    assert read.read_as("upright").orientation == "upright"
    assert read.ids(0, 16) == upright.ids(0, 16)
    np.testing.assert_array_equal(read.sizes_hw(0, 16), stored.sizes_hw(0, 16))
    assert read.sizes_hw(3, 3).shape == (0, 2)
    spec, made = ViewSpec(kind="center"), []
    for dataset in (upright, read, stored):
        views = ViewSet.create(store.objects, dataset, spec, 16)
        drawn = views.draw_shard(0)
        fill_pixels(views, np.arange(16), drawn, [], drawn_now=True)
        views.commit_shard(0, drawn, {})
        made.append(views)
    assert len({views.key for views in made}) == 3
    reopened = [FeatureStore.open(store.objects.url).view_set(views.key) for views in made]
    assert [views.dataset.orientation for views in reopened] == ["upright", "stored", "stored"]
    one, other, third = (views.read(np.arange(16)) for views in reopened)
    np.testing.assert_array_equal(other.digest, third.digest)
    np.testing.assert_array_equal(other.crop, third.crop)
    assert (one.digest != other.digest).any(axis=1).sum() == 14
    for views in reopened:
        fill_pixels(views, np.arange(16), views.read(np.arange(16)), [])
    key = lost_views_identity(store.objects, made[1].key, [upright])
    assert key is not None
    assert b'"as stored"' in key


def test_an_identity_with_an_orientation_that_is_none_is_damage() -> None:
    with pytest.raises(ValueError, match="sideways"):
        orientation_of({"orientation": "sideways"})
