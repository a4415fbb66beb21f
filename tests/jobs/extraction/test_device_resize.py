"""`--resize device`: the same store and the same training, byte for byte, whoever resizes; on a CPU, where the same code runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.renderers import fast
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.runtime.device_resize import CutViews

from ...conftest import make_teacher
from ..training_request import train
from .test_extract import break_image

RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (16, 24)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(4, 6, checkpoint_every=4, log_every=1, reader_threads=2),
)
VIEWS = ViewSpec(views_per_image=2, seed=3)
LETTERBOXED = ViewSpec(kind="letterbox", views_per_image=2, seed=3, photometric="teacher_same", pad_position="center")


def written(folder: Path) -> dict[str, bytes]:
    """Every file of views and features, beside what says when it was written."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.startswith(("views/", "features/"))}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many views each batch sent to be resized."""
    numbers: list[int] = []
    to = CutViews.to

    def counted(self: CutViews, device: torch.device) -> Any:
        numbers.append(len(self))
        return to(self, device)

    monkeypatch.setattr(CutViews, "to", counted)
    return numbers


@pytest.mark.parametrize("spec", [VIEWS, LETTERBOXED, replace(VIEWS, pixels=StoredPixels(24))])
def test_an_extraction_writes_the_same_bytes(photos: Any, tmp_path: Path, spec: ViewSpec, sent: list[int]) -> None:
    store, options, root = photos
    break_image(root)
    build_index(store.objects, str(root / "images"), "broken")
    other = FeatureStore.create(str(tmp_path / "other"))
    build_index(other.objects, str(root / "images"), "broken")
    make_teacher(tmp_path / "second", seed=2)
    teachers = (*options.teachers, TeacherRequest(str(tmp_path / "second"), size_px=24))
    options = replace(options, data="broken", views=spec, teachers=teachers, statistics_batches=1, max_bad_share=0.1, renderer="fast")
    host = extract_features(options)
    assert not sent
    device = extract_features(replace(options, store=other.url, resize="device"))
    assert host["features"] == device["features"]
    assert sum(sent) >= device["rows"] + (0 if spec.pixels else device["rows"])  # the stored input is the second teacher's
    ours, theirs = (written(Path(each.url)) for each in (store, other))
    assert len(ours) > 20
    assert ours == theirs


@pytest.mark.parametrize("source", ["cached", "live"])
def test_a_training_takes_the_same_steps(photos: Any, tmp_path: Path, source: str, sent: list[int]) -> None:
    store, options, _ = photos
    key = extract_features(replace(options, renderer="fast"))["features"]["teacher"]
    live: dict[str, Any] = {"teachers": (options.teachers[0].name,)} if source == "live" else {}
    recipe = replace(RECIPE, teacher=TeacherConfig(source))
    losses = {}
    for resize in ("host", "device"):
        train(recipe, store, [key], data="photos", out=tmp_path / resize, resize=resize, **live)
        losses[resize] = [line["loss"] for line in read_metrics(tmp_path / resize)]
        assert bool(sent) == (resize == "device")
    assert losses["host"] == losses["device"]
    assert sum(sent) == 4 * 6 * (2 if source == "live" else 1)


def test_a_training_from_stored_pixels_resizes_nothing(photos: Any, tmp_path: Path, sent: list[int]) -> None:
    store, options, _ = photos
    spec = replace(VIEWS, pixels=StoredPixels(24))
    key = extract_features(replace(options, renderer="fast", views=spec))["features"]["teacher"]
    only = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(24,)))
    train(only, store, [key], data="photos", out=tmp_path / "stored", resize="device")
    assert not sent
    train(RECIPE, store, [key], data="photos", out=tmp_path / "both", resize="device")  # some steps are of stored pixels, some of images
    train(RECIPE, store, [key], data="photos", out=tmp_path / "host")
    ours, theirs = ([line["loss"] for line in read_metrics(tmp_path / name)] for name in ("both", "host"))
    assert sent
    assert ours == theirs


def test_pillows_views_are_refused_by_both_commands(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    options = replace(options, renderer="pillow")
    key = extract_features(options)["features"]["teacher"]
    with pytest.raises(BadInput, match=r"Pillow resizes these views"):
        extract_features(replace(options, resize="device", codec="fp16"))
    with pytest.raises(BadInput, match=r"Pillow resizes these views"):
        train(RECIPE, store, [key], data="photos", out=tmp_path / "run", resize="device")
    assert not (tmp_path / "run").exists()


def test_both_commands_take_the_option(photos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[int]) -> None:
    store, options, _ = photos
    words = ["--store", store.url, "--data", "photos"]
    teacher = ["--teacher", options.teachers[0].name, "--workers", "0", "--statistics-batches", "1", "--codec", "fp32"]
    assert main(["extract-features", *words, *teacher, "--resize", "device", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(sent) == summary["rows"] == 24
    assert store.view_set(summary["views"]).renderer == fast()
    values = ["--set", "student.architecture=vit-mini", "--set", "student.sizes_px=[16]", "--set", "run.steps=2",
              "--set", "run.batch_size=4", "--set", 'views.photometric="none"', "--set", "teacher.names=[]"]  # fmt: skip
    features = ["--features", summary["features"]["teacher"], "--stage", "2", "--out", str(tmp_path / "run")]
    assert main(["train", *words, *features, *values, "--resize", "device", "--json"]) == 0
    assert sum(sent) == 24 + 2 * 4


def test_an_unknown_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown place to resize 'gpu'"):
        ExtractOptions("store", "photos", (TeacherRequest("x"),), resize="gpu")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(BadInput, match="unknown place to resize 'gpu'"):
        TrainOptions(RECIPE, "store", ("x",), tmp_path, resize="gpu")  # type: ignore[arg-type]
