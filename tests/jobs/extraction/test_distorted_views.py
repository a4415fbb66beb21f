"""Who sees distorted views: the teachers in extraction, statistics and upkeep, and student and live teachers in training, or not."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.evaluation.knn import read_embeddings
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec, render
from eupe_pipeline.student.data.targets import LiveTargets
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.encoders.photometric import apply_photometric

from ..conftest import tokens
from ..training_request import train

SIZE_PX = 24
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (SIZE_PX,)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(20, 6, checkpoint_every=20, log_every=1, reader_threads=2),
)
MODES = ("none", "teacher_same", "student_only")


class Extracted(NamedTuple):
    """A store over a copy of the images, the images' folder, and the key of a feature set by photometric mode."""

    store: FeatureStore
    images: Path
    teacher: TeacherRequest
    keys: dict[str, str]

    def reader(self, mode: str) -> FeatureReader:
        return self.store.features(self.keys[mode])

    def losses(self, mode: str, out: Path, recipe: TrainRecipe = RECIPE, **more: Any) -> list[float]:
        train(recipe, self.store, [self.keys[mode]], data="photos", out=out, **more)
        return [line["loss"] for line in read_metrics(out)]


def make(root: Path, tiny: Any, modes: tuple[str, ...]) -> Extracted:
    """All views measured, one view a forward; pixels are stored except where nothing is distorted."""
    shutil.copytree(tiny.teacher_run.parent / "images", root / "images")
    store = FeatureStore.create(str(root / "store"))
    build_index(store.objects, str(root / "images"), "photos")
    request, keys = TeacherRequest(str(tiny.teacher_run)), {}
    for mode in modes:
        views = ViewSpec(views_per_image=2, seed=3, photometric=mode, pixels=None if mode == "none" else StoredPixels(SIZE_PX))
        options = ExtractOptions(store.url, "photos", (request,), views, 8, "fp32", statistics_batches=100, batch_size=1, workers=0)
        keys[mode] = extract_features(options)["features"]["teacher"]
    return Extracted(store, root / "images", request, keys)


@pytest.fixture(scope="module")
def extracted(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """All three modes. Read only."""
    return make(tmp_path_factory.mktemp("distorted"), tiny_store, MODES)


@pytest.fixture
def own(tiny_store: Any, tmp_path: Path) -> Extracted:
    """One set of `teacher_same`, to be damaged."""
    return make(tmp_path / "own", tiny_store, ("teacher_same",))


def seen_by_teacher(reader: FeatureReader, row: int, px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A view's pixels (1, px, px, 3) without and with its distortion."""
    views = reader.views.read(np.array([row]))
    image = reader.views.dataset.read_image(row // 2)
    clean = torch.from_numpy(render(image, views.crop[0], bool(views.flip[0]), px, renderer=reader.views.renderer))[None]
    return clean, apply_photometric(clean, torch.from_numpy(views.photometric))


def test_teachers_see_the_distorted_view_where_they_are_to_and_the_clean_one_otherwise(extracted: Extracted, tiny_store: Any) -> None:
    for mode in MODES:
        reader = extracted.reader(mode)
        cls, patch = tokens(extracted.store, reader.key)
        for row in (0, 9, 31, 47):
            clean, distorted = seen_by_teacher(reader, row, 16)
            found = tiny_store.teacher(distorted if mode == "teacher_same" else clean)
            np.testing.assert_array_equal(cls[row : row + 1], reader.statistics.normalize_cls(found.cls_BD.numpy()))
            np.testing.assert_array_equal(patch[row : row + 1], reader.statistics.normalize_patch(found.patch_BHWD.numpy()))
    clean_patch, distorted_patch = (tokens(extracted.store, extracted.keys[mode])[1] for mode in ("none", "teacher_same"))
    assert not np.array_equal(clean_patch, distorted_patch)


def test_statistics_are_measured_on_what_the_teacher_sees(extracted: Extracted) -> None:
    digests = {mode: extracted.reader(mode).statistics.digest for mode in MODES}
    assert digests["none"] == digests["student_only"] != digests["teacher_same"]
    _, patch = tokens(extracted.store, extracted.keys["teacher_same"])
    assert abs(patch.mean(axis=(0, 1, 2))).max() < 1e-4
    np.testing.assert_allclose(patch.std(axis=(0, 1, 2)), 1.0, atol=1e-3)


@pytest.mark.parametrize("mode", ["teacher_same", "student_only"])
def test_cached_and_live_targets_train_bit_equal_in_every_mode(
    extracted: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_store: Any, mode: str
) -> None:
    """The cache was made one view at a time, so the live teacher must also be."""
    monkeypatch.setitem(LiveTargets.__init__.__kwdefaults__, "forward_batch", 1)  # type: ignore[arg-type]  # it has keyword arguments
    cached = extracted.losses(mode, tmp_path / "cached")
    live = replace(RECIPE, teacher=TeacherConfig("live"))
    assert extracted.losses(mode, tmp_path / "live", live, proxy=tiny_store.teacher_run) == cached


def test_the_student_sees_the_distortion_in_both_modes(extracted: Extracted, tmp_path: Path) -> None:
    none, same, student = (extracted.losses(mode, tmp_path / mode) for mode in MODES)
    assert len({tuple(none), tuple(same), tuple(student)}) == 3
    targets = [tokens(extracted.store, extracted.keys[mode])[1] for mode in ("none", "student_only")]
    np.testing.assert_array_equal(targets[0], targets[1])


def test_parts_of_a_batch_are_distorted_as_the_whole_is(extracted: Extracted, tmp_path: Path) -> None:
    whole = extracted.losses("student_only", tmp_path / "whole")
    parts = extracted.losses("student_only", tmp_path / "parts", replace(RECIPE, run=replace(RECIPE.run, accumulate=3)))
    np.testing.assert_allclose(whole, parts, rtol=1e-3)


def test_fidelity_compares_with_a_forward_over_the_distorted_view(extracted: Extracted) -> None:
    for mode in ("teacher_same", "student_only"):
        assert (
            fidelity(FidelityOptions(extracted.store.url, extracted.keys[mode], teacher=extracted.teacher, sample=16))["patch"]["min"]
            > 0.99999
        )


def test_damaged_shards_of_a_distorted_set_with_pixels_are_made_again_to_the_byte(own: Extracted) -> None:
    reader = own.reader("teacher_same")
    sound = {}
    for shard, (group, key, array) in enumerate(
        [("features", reader.key, "patch"), ("views", reader.views.key, "photometric"), ("views", reader.views.key, "pixels")]
    ):
        (victim,) = Path(own.store.url, group, key, array).glob(f"c.{shard}.*")
        sound[victim] = victim.read_bytes()
        victim.write_bytes(sound[victim][:50] + bytes([sound[victim][50] ^ 1]) + sound[victim][51:])
    result = repair_features(RepairOptions(own.store.url, reader.key, teacher=own.teacher))
    assert {kind: list(shards) for kind, shards in result["damaged"].items()} == {"features": ["0"], "views": ["1", "2"]}
    assert {path: path.read_bytes() for path in sound} == sound


def test_tokens_of_distorted_views_are_not_evaluated(extracted: Extracted) -> None:
    images = np.arange(3)
    with pytest.raises(BadInput, match="tokens of distorted views"):
        read_embeddings(extracted.reader("teacher_same"), images)
    assert len(read_embeddings(extracted.reader("student_only"), images).mean_patch_ND) == 3


def test_a_plan_of_a_run_counts_the_bytes_that_it_will_read(extracted: Extracted, tmp_path: Path) -> None:
    for size_px, stored in ((SIZE_PX, True), (16, False)):
        recipe = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(size_px,)))
        plan = plan_training(TrainOptions(recipe, extracted.store.url, (extracted.keys["student_only"],), tmp_path / "run", "photos"))
        assert (plan["reading"]["image_bytes_a_view"] == 3 * SIZE_PX**2) == stored


def test_training_on_stored_pixels_needs_no_images(own: Extracted, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    with_images = own.losses("teacher_same", tmp_path / "before")
    other_size = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(16,)))
    assert len(own.losses("teacher_same", tmp_path / "other", other_size, on_event=on_event)) == 20
    assert "24 px, bicubic) do not serve 16 px bicubic" in seen[0]["pixels"]
    shutil.rmtree(own.images)
    seen.clear()
    fresh = own._replace(store=FeatureStore.open(own.store.url))
    assert fresh.losses("teacher_same", tmp_path / "after", on_event=on_event) == with_images
    assert seen[0]["pixels"] == "the pixels stored with the views (24 px, bicubic)"
    with pytest.raises(CacheMismatch, match=r"not at .*images.* any more"):
        fresh.losses("teacher_same", tmp_path / "none", other_size)


def test_a_copied_store_with_pixels_trains_elsewhere_without_images(own: Extracted, tmp_path: Path) -> None:
    key, target = own.keys["teacher_same"], str(tmp_path / "other-store")
    assert main(["features", "cp", key, "--store", own.store.url, "--to", target]) == 0
    before = own.losses("teacher_same", tmp_path / "before")
    shutil.rmtree(own.images)
    shutil.rmtree(own.store.url)
    assert own._replace(store=FeatureStore.open(target)).losses("teacher_same", tmp_path / "after") == before


def test_the_command_makes_distorted_views_with_pixels_and_shows_them(extracted: Extracted, capsys: pytest.CaptureFixture[str]) -> None:
    url, key = extracted.store.url, extracted.keys["teacher_same"]
    words = ["extract-features", "--store", url, "--data", "photos", "--teacher", extracted.teacher.name, "--views", "2", "--seed", "3"]
    more = ["--photometric", "teacher_same", "--pixels", str(SIZE_PX), "--codec", "fp32", "--shard-images", "8", "--workers", "0"]
    assert main([*words, *more, "--statistics-batches", "100", "--json"]) == 0
    assert key in capsys.readouterr().out  # the very set that the fixture made: nothing is done again
    assert main(["features", "show", key, "--store", url]) == 0
    shown = capsys.readouterr().out
    assert "24 px, bicubic, raw uint8" in shown
    assert "teacher_same" in shown
