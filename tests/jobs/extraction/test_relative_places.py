"""Paths that were given relative to where the command runs: the same run in this process, on Ray's ranks and in Ray's actors."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.ray_session import ray_session
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.storage.core.urls import absolute
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.registry.resolve import absolute_name

from ..training.test_train import RECIPE, losses
from ..training_request import train_command

SETTINGS = (
    "device=cpu", "precision=fp32", "student.architecture=vit-mini", "student.sizes_px=[24]", "student.options={depth=1}",
    "adapter.width=32", "run.steps=4", "run.batch_size=6", "run.log_every=1", "run.checkpoint_every=2", "views.photometric=none",
)  # fmt: skip


@pytest.fixture
def here(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder beside links to the tiny store and its teacher's run."""
    (tmp_path / "store").symlink_to(tiny_store.store.url)
    (tmp_path / "teacher").symlink_to(tiny_store.teacher_run)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_session(None, 3) as session:
        yield session


def command(**values: Any) -> dict[str, Any]:
    return train_command(**{"settings": SETTINGS, "store": "../store", **values})


def test_a_place_is_absolute_unless_it_is_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert absolute("runs/a") == str(here / "work" / "runs" / "a")
    assert absolute("~/runs") == str(here / "runs")
    for name in ("s3://bucket/run", "hub:owner/name@" + "0" * 40, "hf:owner/name", "timm:resnet18", ""):
        assert absolute(name) == name
    assert absolute_name("../teacher") == str(here / "work" / ".." / "teacher")
    assert absolute_name("~/teacher") == str(here / "teacher")
    assert absolute_name("hf:../teacher") == f"hf:{here / 'work' / '..' / 'teacher'}"
    assert absolute_name("pecore-g") == "pecore-g"


def test_what_goes_to_ranks_holds_no_relative_place(here: Path) -> None:
    recipe = replace(RECIPE, student=replace(RECIPE.student, init_from="../teacher"))
    asked = TrainOptions(recipe, "../store", ("f",), "run", "photos", teachers=("../teacher", "pecore-g"), shard_cache=Path("cache"))
    by_proxy = TrainOptions(RECIPE, "../store", ("f",), Path("run"), "photos", proxy="../teacher")
    base = str(here / "work")
    assert (asked.store, asked.out, asked.recipe.student.init_from) == (str(here / "store"), f"{base}/run", str(here / "teacher"))
    assert (list(asked.teachers), asked.shard_cache) == ([f"{base}/../teacher", "pecore-g"], Path(base) / "cache")
    assert (by_proxy.proxy, by_proxy.live_teachers) == (f"{base}/../teacher", (f"{base}/../teacher",))


@pytest.mark.long  # tests/jobs/training/test_ranks.py trains into a relative folder in every run of the suite
@pytest.mark.filterwarnings("ignore")  # Ray Train's own
def test_ranks_train_into_a_relative_folder_from_a_relative_start_with_a_relative_proxy(ray: Any, here: Path) -> None:
    command(stage=2, out="runs/first")
    Path("start.toml").write_text('extends = "eupe-stage3"\nstage = 3\n[student]\ninit_from = "runs/first"\n')
    live = {"stage": 3, "recipe": "start.toml", "settings": (*SETTINGS, "teacher.sizes_px=[16]"), "proxy": Path("../teacher")}
    alone = command(out=Path("runs/alone"), **live)
    ranked = command(out=Path("runs/ranked"), workers=2, **live)
    assert (ranked["ranks"], ranked["model"]) == (2, str(here / "work" / "runs" / "ranked" / "model"))
    assert losses(Path("runs/ranked")) == pytest.approx(losses(Path("runs/alone")), abs=2e-5)
    assert alone["model"] == str(here / "work" / "runs" / "alone" / "model")
    for name in ("alone", "ranked"):
        recorded = json.loads((here / "work" / "runs" / name / "recipe.json").read_text())
        assert recorded["recipe"]["student"]["init_from"] == str(here / "work" / "runs" / "first")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["alone", "first", "ranked"]


@pytest.mark.long
def test_actors_extract_with_a_relative_teacher_weights_and_store(ray: Any, tiny_store: Any, here: Path) -> None:
    store = FeatureStore.create("new-store")
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    os.link((here / "teacher" / "model" / "backbone.safetensors").resolve(), "weights.safetensors")
    request = TeacherRequest("../teacher", weights=Path("weights.safetensors"))
    options = ExtractOptions("new-store", "photos", (request,), ViewSpec(seed=3), 8, "fp32", statistics_batches=2, workers=1)
    summary = extract_features(options)
    assert (summary["shards_missing"], summary["images"]) == (0, 24)
    assert FeatureStore.open(here / "work" / "new-store").features(summary["features"]["teacher"]).complete


def test_a_run_goes_on_from_another_folder_by_another_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(stage=2, out="first")
    first = (*SETTINGS, "student.init_from=first")
    command(stage=2, out="next", settings=first)
    whole = losses(here / "work" / "next")
    (here / "link").symlink_to(here / "work")
    monkeypatch.chdir(here)
    for start, out in (("work/first", "work/next"), (str(here / "link" / "first"), "link/next"), ("./link/../work/first", "link/next")):
        again = command(stage=2, store="store", out=out, settings=(*SETTINGS, f"student.init_from={start}"))
        assert again["already"]
    assert [line["loss"] for line in read_metrics(here / "link" / "next")] == whole
