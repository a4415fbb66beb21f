"""Two renderers, one way: each set is rendered by what its identity names, equally, or refused with what to install."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from eupe_pipeline.storage.images import fast_jpeg
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.objects.content_addressed import pack_identity
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.lost_identities import lost_views_identity
from eupe_pipeline.storage.views import torch_resize
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.pixels import fill_pixels, view_pixels
from eupe_pipeline.storage.views.renderer_choice import choose_renderer
from eupe_pipeline.storage.views.renderers import INTERPOLATIONS, PILLOW, Renderer, fast
from eupe_pipeline.storage.views.view_set import ViewSet, views_identity
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec, cut, fit, pixel_digest, resize
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
SPEC = ViewSpec(views_per_image=2, seed=4)


def picture(height: int, width: int) -> Pixels:
    coarse = np.random.default_rng(height * width).integers(0, 256, (max(1, height // 6), max(1, width // 6), 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, ImageDataset]:
    """Six JPEGs and a PNG of several sizes."""
    folder = tmp_path_factory.mktemp("renderers")
    (folder / "images").mkdir()
    for n in range(7):
        Image.fromarray(picture(60 + 7 * n, 90 - 6 * n)).save(folder / "images" / f"{n}.{'png' if n == 3 else 'jpg'}")
    store = FeatureStore.create(str(folder / "store"))
    return store, build_index(store.objects, str(folder / "images"), "photos")


def committed(store: FeatureStore, dataset: ImageDataset, renderer: Renderer, spec: ViewSpec = SPEC) -> ViewSet:
    views = ViewSet.create(store.objects, dataset, spec, 4, renderer)
    for shard in range(views.shards):
        if views.read_shard(shard) is None:
            drawn = views.draw_shard(shard)
            pixels = None if spec.pixels is None else np.zeros((len(drawn.crop), *spec.pixels.input.shape), np.uint8)
            outputs = [] if pixels is None or spec.pixels is None else [(spec.pixels.input, pixels)]
            fill_pixels(views, np.arange(*views.group.shard_span(shard)), drawn, outputs, drawn_now=True)
            views.commit_shard(shard, drawn, {}, pixels)
    return views


SIZES = [((61, 83), (32, 32)), ((83, 61), (32, 48)), ((1, 1), (8, 8)), ((1, 40), (16, 16)), ((40, 1), (16, 16)), ((9, 7), (64, 40)),
         ((600, 1000), (24, 24)), ((32, 32), (32, 32))]  # fmt: skip


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("crop_hw", "size"), SIZES)
def test_torchs_kernels_are_the_antialiased_filters_that_pillow_has(
    crop_hw: tuple[int, int], size: tuple[int, int], interpolation: str
) -> None:
    crop = picture(*crop_hw)
    found, wanted = np.empty((*size, 3), np.uint8), resize(crop, False, size, interpolation)
    torch_resize.resize_into(found, crop, False, interpolation)
    difference = np.abs(found.astype(int) - wanted)
    assert difference.max() <= 2
    if interpolation == "nearest":
        assert difference.max() == 0
    else:  # by the public function, which cannot write into memory of the caller's
        image = torch.from_numpy(crop).permute(2, 0, 1)[None]
        theirs = torch.nn.functional.interpolate(image, size=size, mode=interpolation, antialias=True)[0].permute(1, 2, 0)
        np.testing.assert_array_equal(found, theirs.numpy())


def test_a_stripe_too_fine_for_the_view_becomes_grey_by_either() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for renderer in (PILLOW, fast()):
        assert abs(resize(stripes, False, 8, renderer=renderer)[1:-1, 1:-1].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("letterbox", [None, Letterbox(), Letterbox("center", (1, 2, 3))])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_the_same_wherever_it_is_written_and_whatever_memory_the_crop_lies_in(flip: bool, letterbox: Letterbox | None) -> None:
    image, wanted = picture(70, 120), Input((48, 40))
    crop, read_only = np.ascontiguousarray(image[3:60, 5:100]), np.ascontiguousarray(image[3:60, 5:100])
    read_only.flags.writeable = False
    expected = fit(crop, flip, wanted, letterbox, fast())
    batch, canvas = np.zeros((3, 48, 40, 3), np.uint8), np.full((60, 50, 3), 7, np.uint8)
    fit(read_only, flip, wanted, letterbox, fast(), batch[1])
    fit(image[3:60, 5:100], flip, wanted, letterbox, fast(), canvas[2:50, 4:44])
    np.testing.assert_array_equal(batch[1], expected)
    np.testing.assert_array_equal(canvas[2:50, 4:44], expected)
    assert batch[::2].max() == 0
    canvas[2:50, 4:44] = 7
    assert (canvas == 7).all()
    if letterbox is None:
        np.testing.assert_array_equal(expected, fit(crop, not flip, wanted, None, fast())[:, ::-1])


def test_letterboxed_views_have_the_same_border_by_either_renderer() -> None:
    crop, wanted, letterbox = picture(70, 120), Input(64), Letterbox("center", (9, 8, 7))
    ours, theirs = (fit(crop, True, wanted, letterbox, renderer) for renderer in (fast(), PILLOW))
    top, left, height, width = letterbox.content((70, 120), 64)
    inside = np.zeros((64, 64), np.bool_)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(ours[~inside], theirs[~inside])
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_what_the_kernel_gives_does_not_depend_on_the_processors_instructions() -> None:
    script = "from eupe_pipeline.storage.views.torch_resize import check; print(check())"
    found = subprocess.run(
        [sys.executable, "-c", script], env={"ATEN_CPU_CAPABILITY": "default", "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == torch_resize.check()


def test_opening_a_store_and_describing_pillows_views_imports_no_torch() -> None:
    rooms = "eupe_pipeline.storage.store, eupe_pipeline.storage.index, eupe_pipeline.storage.views.renderer_choice"
    script = f"import sys, {rooms}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_an_identity_of_pillows_views_is_that_of_before(made: tuple[FeatureStore, ImageDataset]) -> None:
    identity = views_identity(made[1], SPEC, 4)
    assert list(identity) == ["format", "dataset", "images", "views", "decoder", "images_per_shard"]
    assert sorted(identity["decoder"]) == ["library", "orientation", "version"]
    assert Renderer.of(identity) == PILLOW


def test_an_identity_names_decoder_and_resizer_with_library_version_and_mode(made: tuple[FeatureStore, ImageDataset]) -> None:
    pytest.importorskip("simplejpeg")
    identity = views_identity(made[1], SPEC, 4, fast())
    assert {**identity["decoder"]["jpeg"]} == {
        "library": "simplejpeg", "version": importlib.metadata.version("simplejpeg"), "mode": "accurate DCT, smooth upsampling",
    }  # fmt: skip
    assert {**identity["resizer"]} == {
        "library": "torch", "version": importlib.metadata.version("torch").partition("+")[0], "mode": torch_resize.MODE,
        "check": torch_resize.check(),
    }  # fmt: skip
    assert Renderer.of(json.loads(json.dumps(identity))) == fast()


def test_each_set_is_rendered_by_what_it_names_and_by_that_after_it_was_opened_again(made: tuple[FeatureStore, ImageDataset]) -> None:
    store, dataset = made
    rows, wanted = np.array([0, 3, 6, 9, 13]), Input(24)
    for renderer in (PILLOW, fast()):
        views = store.view_set(committed(store, dataset, renderer).key)
        assert views.renderer == renderer
        recorded, found = views.read(rows), view_pixels(views, rows, wanted)
        for n, row in enumerate(rows.tolist()):
            crop = cut(dataset.read_image(row // 2), recorded.crop[n])
            np.testing.assert_array_equal(found[n], resize(crop, bool(recorded.flip[n]), 24, renderer=renderer))
            assert recorded.digest[n].tobytes() == pixel_digest(crop)


def test_stored_pixels_are_what_the_set_renders(made: tuple[FeatureStore, ImageDataset]) -> None:
    store, dataset = made
    views = committed(store, dataset, fast(), replace(SPEC, pixels=StoredPixels(16)))
    rows = np.arange(views.rows)
    plain = committed(store, dataset, fast())
    np.testing.assert_array_equal(views.read_pixels(rows), view_pixels(plain, rows, Input(16)))


def renamed(store: FeatureStore, views: ViewSet, folder: Path, **changes: object) -> ViewSet:
    """The same set with another identity, as another machine would have written it."""
    identity = {**views.identity, **changes}
    copy = FeatureStore.create(str(folder / "other"))
    shutil.copytree(Path(store.url) / "datasets", folder / "other" / "datasets", dirs_exist_ok=True)
    return ViewSet.create(copy.objects, copy.dataset("photos"), views.spec, 4, Renderer.of(identity))


def commit_as(views: ViewSet, other: ViewSet) -> None:
    for shard in range(views.shards):
        drawn = other.read_shard(shard)
        assert drawn is not None
        views.commit_shard(shard, drawn, {})


LATER = "which this version of eupe-pipeline does not know; use a later one"
OTHER_RESIZERS = [
    ({"check": "0" * 16, "version": "1.0"}, r"torch 1\.0 resized them, and torch .* gives other pixels; run: pip install 'torch==1\.0'"),
    ({"mode": "float32 on some device"}, rf"torch \(float32 on some device\) resized them, {LATER}"),
    ({"library": "opencv"}, f"opencv .*{LATER}"),
]


@pytest.mark.parametrize(("change", "why"), OTHER_RESIZERS)
def test_views_that_another_resizer_made_open_and_are_not_rendered_here(
    made: tuple[FeatureStore, ImageDataset], tmp_path: Path, change: dict[str, str], why: str
) -> None:
    store, dataset = made
    views = committed(store, dataset, fast())
    other = renamed(store, views, tmp_path, resizer={**views.identity["resizer"], **change})
    commit_as(other, views)
    assert other.read(np.array([0])).crop.tolist() == views.read(np.array([0])).crop.tolist()
    with pytest.raises(CacheMismatch, match=why):
        view_pixels(other, np.array([0]), Input(16))
    with pytest.raises(CacheMismatch, match=why):  # also where digests alone are compared
        fill_pixels(other, np.array([0]), other.read(np.array([0])), [])


def test_another_version_that_gives_the_same_pixels_renders(made: tuple[FeatureStore, ImageDataset], tmp_path: Path) -> None:
    store, dataset = made
    views = committed(store, dataset, fast())
    other = renamed(store, views, tmp_path, resizer={**views.identity["resizer"], "version": "2.99.0"})
    commit_as(other, views)
    assert other.digest != views.digest
    np.testing.assert_array_equal(view_pixels(other, np.arange(3), Input(16)), view_pixels(views, np.arange(3), Input(16)))


def test_a_machine_without_the_decoder_reads_what_is_stored_and_refuses_to_render(
    made: tuple[FeatureStore, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    store, dataset = made
    spec = replace(SPEC, pixels=StoredPixels(16))
    views, rows = committed(store, dataset, fast(), spec), np.array([1, 2])
    monkeypatch.setattr(fast_jpeg, "is_installed", lambda: False)
    again = store.view_set(views.key)
    assert view_pixels(again, rows, Input(16)).shape == (2, 16, 16, 3)
    with pytest.raises(CacheMismatch, match=r"simplejpeg decoded their JPEGs, which is not installed here; run: pip install 'simplejpeg=="):
        view_pixels(again, rows, Input(24))
    assert fast().jpeg is None
    assert fast().resizer is not None
    assert committed(store, dataset, fast()).renderer.jpeg is None


def test_a_description_that_is_none_is_damage(made: tuple[FeatureStore, ImageDataset], tmp_path: Path) -> None:
    store, dataset = made
    views = committed(store, dataset, fast())
    for number, resizer in enumerate(("torch", {"library": "torch"}, {"library": 1, "version": "2"}, [])):
        with pytest.raises(ValueError, match="a renderer of"):
            Renderer.of({**views.identity, "resizer": resizer})
        folder = Path(store.url) / "views" / f"broken{number}"
        shutil.copytree(Path(store.url) / "views" / views.key, folder)
        (folder / "identity.json").write_bytes(pack_identity("views", {**views.identity, "resizer": resizer}))
        with pytest.raises((CacheDamaged, BadInput)):
            store.view_set(folder.name)
        shutil.rmtree(folder)


@pytest.fixture
def empty(made: tuple[FeatureStore, ImageDataset], tmp_path: Path) -> tuple[FeatureStore, ImageDataset]:
    """A store of its own over the same images."""
    store = FeatureStore.create(str(tmp_path / "empty"))
    return store, build_index(store.objects, made[1].source, "photos")


def chosen(store: FeatureStore, dataset: ImageDataset, spec: ViewSpec = SPEC) -> tuple[Renderer, str]:
    said: list[str] = []
    renderer = choose_renderer(store.objects, dataset, spec, 4, "auto", lambda event: said.append(str(event.get("text"))))
    return renderer, " ".join(said)


def test_what_begins_anew_is_rendered_fast_and_what_goes_on_as_it_was(empty: tuple[FeatureStore, ImageDataset]) -> None:
    store, dataset = empty
    assert chosen(store, dataset)[0] == fast()
    committed(store, dataset, PILLOW)
    renderer, said = chosen(store, dataset)
    assert renderer == PILLOW
    assert "JPEGs decoded by Pillow, crops resized by Pillow" in said
    assert chosen(store, dataset, replace(SPEC, seed=5)) == (fast(), "")
    committed(store, dataset, fast())
    assert chosen(store, dataset) == (fast(), "")
    for name, wanted in (("pillow", PILLOW), ("fast", fast())):
        assert choose_renderer(store.objects, dataset, SPEC, 4, name) == wanted  # type: ignore[arg-type]  # names of the list


def test_a_set_of_another_version_that_gives_the_same_pixels_goes_on(empty: tuple[FeatureStore, ImageDataset]) -> None:
    store, dataset = empty
    of_before = Renderer(fast().jpeg, {**(fast().resizer or {}), "version": "2.99.0"})
    assert [one.name for one in (PILLOW, fast(), of_before)] == ["pillow", "fast", "auto"]
    views = committed(store, dataset, of_before)
    assert chosen(store, dataset)[0] == of_before
    assert ViewSet.create(store.objects, dataset, SPEC, 4, of_before).key == views.key
    other = Renderer(fast().jpeg, {**(fast().resizer or {}), "check": "0" * 16})
    committed_spec = replace(SPEC, seed=9)
    ViewSet.create(store.objects, dataset, committed_spec, 4, other)
    assert chosen(store, dataset, committed_spec)[0] == fast()


def test_a_dataset_that_grew_is_rendered_as_its_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    store = FeatureStore.create(str(tmp_path / "store"))

    def add(name: str) -> ImageDataset:
        Image.fromarray(picture(50, 60)).save(tmp_path / "images" / f"{name}.jpg", quality=80 + len(name))
        return build_index(store.objects, str(tmp_path / "images"), "photos")

    first = add("a")
    committed(store, first, PILLOW)
    grown = add("bb")
    assert [earlier.digest for earlier in grown.earlier] == [first.digest]
    renderer, said = chosen(store, grown)
    assert renderer == PILLOW
    assert "photos@" in said
    committed(store, first, fast())
    assert chosen(store, grown)[0] in (PILLOW, fast())


@pytest.mark.parametrize("of", ["pillow", "fast"])
def test_a_lost_identity_of_either_renderer_is_found_again(made: tuple[FeatureStore, ImageDataset], of: str) -> None:
    store, dataset = made
    views = committed(store, dataset, PILLOW if of == "pillow" else fast())
    found = lost_views_identity(store.objects, views.key, [dataset])
    assert found == pack_identity("views", views.identity)


@pytest.fixture
def brighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose pixels differ in one bit, as another version's may."""
    simplejpeg = pytest.importorskip("simplejpeg")
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **options: decode(*args, **options) ^ np.uint8(1))


@pytest.mark.usefixtures("brighter")
def test_a_decoder_of_other_pixels_is_found_by_the_digests(made: tuple[FeatureStore, ImageDataset]) -> None:
    store, dataset = made
    views = committed(store, dataset, fast(), replace(SPEC, seed=77))
    fill = np.array([0])
    assert view_pixels(views, fill, Input(16)).shape == (1, 16, 16, 3)  # as it was recorded, by the same decoder
    with pytest.raises(CacheMismatch, match=r"pixel digest differs.*JPEGs decoded by simplejpeg"):
        view_pixels(committed_before(store, dataset), fill, Input(16))


def committed_before(store: FeatureStore, dataset: ImageDataset) -> ViewSet:
    """The set that earlier tests committed, opened again."""
    return ViewSet.create(store.objects, dataset, SPEC, 4, fast())
