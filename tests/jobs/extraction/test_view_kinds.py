"""Whole and letterboxed views and inputs that are not square, end to end: what is cached is what a live teacher sees and gives."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, embed_images, read_embeddings
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.jobs.evaluation.pooled_features import pooled_features
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.input_size import SizePx
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.pixels import view_pixels
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec, render
from eupe_pipeline.student.data.targets import LiveTargets
from eupe_pipeline.student.model.recipe import (
    AdapterConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainRecipe,
)
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.encoders.photometric import apply_photometric

from ...storage.second_reader import redraw_positions
from ..conftest import tokens
from ..training_request import train

LETTERBOX = {"kind": "letterbox", "pad_position": "center", "pad_rgb": (114, 114, 114)}
KINDS: dict[str, dict[str, Any]] = {"whole": {"kind": "whole"}, "end": {"kind": "letterbox"}, "center": LETTERBOX, "crop": {}}
MODES = ("none", "teacher_same", "student_only")
SHAPES: dict[str, tuple[SizePx, SizePx]] = {"square": (16, 24), "oblong": ((16, 32), (24, 48))}
"""Of the teacher and of the student; their stride is 8."""


class Extracted(NamedTuple):
    """A store, one feature set of it, and sizes of the teacher and the student."""

    store: FeatureStore
    key: str
    teacher_px: SizePx
    student_px: SizePx

    @property
    def reader(self) -> FeatureReader:
        return self.store.features(self.key)

    def recipe(self, **tables: Any) -> TrainRecipe:
        values = {
            "student": StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (self.student_px,)), "adapter": AdapterConfig(32),
            "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
            "run": RunConfig(4, 6, checkpoint_every=20, log_every=1, reader_threads=2),
        }  # fmt: skip
        return TrainRecipe(stage=2, precision="fp32", device="cpu", **{**values, **tables})

    def losses(self, out: Path, recipe: TrainRecipe | None = None, **more: Any) -> list[float]:
        train(recipe or self.recipe(), self.store, [self.key], data="photos", out=out, **more)
        return [line["loss"] for line in read_metrics(out)]


def make(root: Path, tiny: Any, kind: str, shape: str, mode: str, **options: Any) -> Extracted:
    """All views measured, one view a forward; pixels are stored at the student's input where views are distorted."""
    if not (root / "images").exists():
        shutil.copytree(tiny.teacher_run.parent / "images", root / "images")
    store = FeatureStore.create(str(root / "store"))
    build_index(store.objects, str(root / "images"), "photos")
    teacher_px, student_px = SHAPES[shape]
    stored = None if mode == "none" else StoredPixels(student_px)
    views = ViewSpec(**{"views_per_image": 2, "seed": 3, "photometric": mode, "pixels": stored, **KINDS[kind]})
    request = TeacherRequest(str(tiny.teacher_run), size_px=teacher_px)
    values = {"statistics_batches": 100, "batch_size": 1, "workers": 0, **options}
    found = extract_features(ExtractOptions(store.url, "photos", (request,), views, 8, "fp32", **values))
    return Extracted(store, found["features"]["teacher"], teacher_px, student_px)


ALL = [(kind, shape, mode) for kind in KINDS for shape in SHAPES for mode in MODES if (kind, shape) != ("crop", "square")]
QUICK = [("end", "oblong", "teacher_same"), ("center", "square", "student_only")]


@pytest.mark.parametrize(("kind", "shape", "mode"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.long) for one in ALL])
def test_cached_and_live_targets_train_bit_equal(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: str, mode: str
) -> None:
    """The cache was made one view at a time, so the live teacher must also be."""
    monkeypatch.setitem(LiveTargets.__init__.__kwdefaults__, "forward_batch", 1)  # type: ignore[arg-type]  # it has keyword arguments
    made = make(tmp_path, tiny_store, kind, shape, mode)
    live = made.recipe(teacher=TeacherConfig("live"))
    assert made.losses(tmp_path / "live", live, proxy=tiny_store.teacher_run) == made.losses(tmp_path / "cached")


@pytest.fixture(scope="module")
def padded(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """Letterboxed views that both see distorted, not square. Read only."""
    return make(tmp_path_factory.mktemp("padded"), tiny_store, "end", "oblong", "teacher_same")


def seen(made: Extracted, row: int, size: SizePx) -> tuple[torch.Tensor, torch.Tensor]:
    """A view's pixels without and with its distortion, restated: the image alone is distorted, and then padded."""
    spec, views = made.reader.views.spec, made.reader.views.read(np.array([row]))
    image, wanted = made.reader.views.dataset.read_image(row // 2), Input(size)
    clean = torch.from_numpy(
        render(image, views.crop[0], bool(views.flip[0]), size, letterbox=spec.letterbox, renderer=made.reader.views.renderer)
    )[None]
    distortions = spec.distortions(views, size)
    assert distortions.shape == (1, 12)
    assert clean.shape == (1, *wanted.shape)
    return clean, apply_photometric(clean, torch.from_numpy(distortions))


def test_the_teacher_sees_the_padded_view_with_its_image_distorted(padded: Extracted, tiny_store: Any) -> None:
    reader = padded.reader
    cls, patch = tokens(padded.store, reader.key)
    assert patch.shape[1:3] == reader.grid == (2, 4)
    for row in (0, 9, 31, 47):
        found = tiny_store.teacher(seen(padded, row, padded.teacher_px)[1])
        np.testing.assert_array_equal(cls[row : row + 1], reader.statistics.normalize_cls(found.cls_BD.numpy()))
        np.testing.assert_array_equal(patch[row : row + 1], reader.statistics.normalize_patch(found.patch_BHWD.numpy()))


def test_statistics_are_those_of_tokens_that_see_any_of_the_image(padded: Extracted) -> None:
    reader, (_, patch) = padded.reader, tokens(padded.store, padded.key)
    taught = reader.views.spec.taught_cells(reader.views.read(np.arange(reader.rows)).crop, padded.teacher_px, reader.grid)
    assert taught is not None
    assert 0.5 < taught.mean() < 0.9  # 24 to 28 rows by 26 to 28 columns leave a quarter of 16 × 32 px empty, and more
    np.testing.assert_allclose(patch[taught].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(patch[taught].std(axis=0), 1, atol=1e-3)


@pytest.mark.long
def test_whole_shards_and_a_sample_measure_the_same_statistics(padded: Extracted, tiny_store: Any, tmp_path: Path) -> None:
    whole = make(tmp_path, tiny_store, "end", "oblong", "teacher_same", statistics_batches=None)
    for one, other in zip(whole.reader.statistics.arrays().values(), padded.reader.statistics.arrays().values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_replayed_pixels_are_the_rendered_ones_whether_stored_or_cut_again(padded: Extracted) -> None:
    views, rows = padded.reader.views, np.array([0, 9, 31])
    for size in (padded.student_px, padded.teacher_px):  # stored, and cut from the images with their digests compared
        expected = torch.cat([seen(padded, row, size)[0] for row in rows.tolist()]).numpy()
        np.testing.assert_array_equal(view_pixels(views, rows, Input(size)), expected)


def test_a_second_extraction_computes_nothing_and_a_damaged_shard_comes_back_byte_for_byte(tiny_store: Any, tmp_path: Path) -> None:
    made = make(tmp_path, tiny_store, "end", "oblong", "teacher_same")
    again = make(tmp_path, tiny_store, "end", "oblong", "teacher_same")
    assert again.key == made.key
    damaged = sorted((tmp_path / "store" / "features" / made.key / "patch").glob("c*"))[0]
    before = damaged.read_bytes()
    damaged.write_bytes(bytes(len(before)))
    repair_features(RepairOptions(made.store.url, made.key, TeacherRequest(str(tiny_store.teacher_run))))
    assert damaged.read_bytes() == before
    measured = fidelity(FidelityOptions(made.store.url, made.key, TeacherRequest(str(tiny_store.teacher_run)), sample=8))
    assert measured["patch"]["min"] > 0.9999


def test_what_the_padding_holds_changes_no_loss(padded: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a relation loss as well; at the teacher's own grid, because upsampling mixes neighbours at the border."""
    recipe = padded.recipe(loss=LossConfig(relation=0.5))
    recipe = replace(recipe, student=replace(recipe.student, sizes_px=(padded.teacher_px,)))
    expected, read = padded.losses(tmp_path / "as-it-is", recipe), FeatureReader.read

    def noisy(self: FeatureReader, which: Any, out: Any = None, *, check: bool = True, threads: int | None = None) -> Any:
        found, spec = read(self, which, out, check=check, threads=threads), self.views.spec
        taught = spec.taught_cells(self.views.read(which).crop, self.input_px, self.grid)
        assert taught is not None
        found.patch[~taught if which_part == "padding" else taught] = 7.0
        return found

    monkeypatch.setattr(FeatureReader, "read", noisy)
    which_part = "padding"
    assert padded.losses(tmp_path / "padding", recipe) == expected
    which_part = "image"
    assert padded.losses(tmp_path / "image", recipe) != expected


@pytest.mark.parametrize("size", [16, (48, 24), (24, 40)])
def test_a_student_of_another_aspect_ratio_is_refused_for_letterboxed_views_by_plan_and_train(
    padded: Extracted, tmp_path: Path, size: SizePx
) -> None:
    recipe = replace(padded.recipe(), student=replace(padded.recipe().student, sizes_px=(size,)))
    with pytest.raises(BadInput, match="one aspect ratio"):
        padded.losses(tmp_path / "out", recipe)
    with pytest.raises(BadInput, match="one aspect ratio"):
        plan_training(TrainOptions(recipe, padded.store.url, (padded.key,), tmp_path / "out", "photos"))


def test_the_plan_of_a_training_counts_pixels_that_are_not_square(padded: Extracted, tmp_path: Path) -> None:
    plan = plan_training(TrainOptions(padded.recipe(), padded.store.url, (padded.key,), tmp_path / "out", "photos"))
    assert plan["reading"]["image_bytes_a_view"] == 3 * 24 * 48  # stored


def cells_of_image(made: Extracted, row: int) -> list[bool]:
    """Which cells of the teacher's grid have any pixel of a view's image: by a picture of where it is, not by arithmetic."""
    reader = made.reader
    crop = reader.views.read(np.array([row])).crop[0]
    letterbox = replace(reader.views.spec.letterbox or Letterbox(), rgb=(0, 0, 0))
    white = np.full((*crop[2:].tolist(), 3), 255, np.uint8)
    seen = render(white, np.array([0, 0, *crop[2:]], np.int32), False, made.teacher_px, letterbox=letterbox).any(axis=-1)
    (height, width), (rows, columns) = seen.shape, reader.grid
    cells = seen.reshape(rows, height // rows, columns, width // columns).any(axis=(1, 3))
    return [bool(cell) for cell in cells.ravel()]


@pytest.mark.parametrize("kind", ["end", "center"])
def test_sampled_tokens_of_a_letterbox_are_those_of_the_image(tiny_store: Any, tmp_path: Path, kind: str) -> None:
    """Of eight cells four or six have any of the image, centred also all: a sample of three never leaves it."""
    whole = make(tmp_path, tiny_store, kind, "oblong", "none")
    made = make(tmp_path, tiny_store, kind, "oblong", "none", tokens_per_view=3)
    reader, rows = made.reader, np.arange(made.reader.rows)
    seen, found, layout = [cells_of_image(made, row) for row in rows.tolist()], reader.read(rows), reader.identity["layout"]
    assert {sum(cells) for cells in seen} == ({4, 6} if kind == "end" else {4, 6, 8})
    assert found.position is not None
    assert all(seen[row][place] for row in rows for place in found.position[row].tolist())
    ids = [reader.views.dataset.row(row // 2).id for row in rows.tolist()]
    again = [redraw_positions({"seed": 3}, layout, ids[row], row % 2, seen[row]) for row in rows.tolist()]
    assert found.position.tolist() == again
    np.testing.assert_array_equal(found.patch, take_positions(whole.reader.read(rows).patch, found.position))
    plain = FeatureReader.create(reader._objects, "teacher", reader.views, without_sampled_in(reader.identity), reader.statistics)
    anywhere = [redraw_positions({"seed": 3}, layout, ids[row], row % 2) for row in range(8)]
    drawn = plain.draw_positions(0)
    assert drawn is not None
    assert drawn[:8].tolist() == anywhere  # as sets were drawn that do not say where


def without_sampled_in(identity: dict[str, Any]) -> dict[str, Any]:
    layout = {name: value for name, value in identity["layout"].items() if name != "sampled_in"}
    return {**identity, "layout": layout}


def test_a_sample_of_all_tokens_of_the_image_trains_as_the_live_teacher_does(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tokens of eight: all of the image, and of images that have four two of the padding, which teach nothing."""
    monkeypatch.setitem(LiveTargets.__init__.__kwdefaults__, "forward_batch", 1)  # type: ignore[arg-type]  # it has keyword arguments
    made = make(tmp_path, tiny_store, "end", "oblong", "none", tokens_per_view=6)
    recipe = made.recipe(student=replace(made.recipe().student, sizes_px=((16, 32),)), loss=LossConfig(relation=0.5))
    live = made.losses(tmp_path / "live", replace(recipe, teacher=TeacherConfig("live")), proxy=tiny_store.teacher_run)
    np.testing.assert_allclose(made.losses(tmp_path / "cached", recipe), live, rtol=2e-5)
    some = make(tmp_path, tiny_store, "end", "oblong", "none", tokens_per_view=3)
    assert abs(np.divide(some.losses(tmp_path / "some", recipe), live) - 1).max() > 1e-3


def test_means_of_patch_tokens_leave_padding_out(tiny_store: Any, tmp_path: Path) -> None:
    """For evaluations of cached tokens, and for curation of teachers without class tokens."""
    reader = make(tmp_path, tiny_store, "center", "oblong", "none").reader
    images, (_, patch) = np.array([0, 5, 11]), tokens(reader_store(tmp_path), reader.key)
    taught = reader.views.spec.taught_cells(reader.views.read(2 * images).crop, (16, 32), reader.grid)
    assert taught is not None
    expected = np.stack([patch[2 * image][cells].mean(axis=0) for image, cells in zip(images.tolist(), taught, strict=True)])
    np.testing.assert_allclose(reader.mean_patch(2 * images, reader.read(2 * images)), expected, atol=1e-5)
    found = read_embeddings(reader, images)
    np.testing.assert_allclose(found.mean_patch_ND, reader.statistics.denormalize_patch(expected), atol=1e-4)


def reader_store(root: Path) -> FeatureStore:
    return FeatureStore.open(str(root / "store"))


def test_an_evaluation_at_an_oblong_input_sees_the_same_centre_whether_features_are_kept_or_not(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url.removeprefix("file://"), tmp_path / "store")
    store = FeatureStore.open(str(tmp_path / "store"))
    dataset, model = store.dataset("photos"), open_model(str(tiny_store.teacher_run), (16, 32))
    more: dict[str, Any] = {"device": "cpu", "crop_fraction": 1.0, "batch_size": 8, "on_event": lambda event: None}
    kept = read_embeddings(pooled_features(store, dataset, model, **more), np.arange(6))
    fresh = embed_images(model.load("cpu"), dataset, np.arange(6), EvaluationSize(batch_size=8))
    np.testing.assert_allclose(kept.mean_patch_ND, fresh.mean_patch_ND, atol=1e-4)
