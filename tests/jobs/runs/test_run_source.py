"""Runs at URLs as the start of another run and as its live teacher, on a real S3 server: fetched once, verified, and clear when absent."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs.run_source import local_run
from eupe_pipeline.jobs.runs.upload import RunMirror
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.objects.objects import open_objects
from eupe_pipeline.student.model.recipe import TeacherConfig

from ...storage.faulty_s3 import FaultyServer
from ..training.test_train import RECIPE, losses
from ..training_request import train

pytestmark = pytest.mark.usefixtures("machine")


@pytest.fixture
def machine(bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "machine"))


@pytest.fixture
def proxy(tiny_store: Any, tmp_path: Path) -> str:
    """The teacher's run as a run with `--out URL` leaves it."""
    url = f"s3://runs/{uuid.uuid4().hex}"
    mirror = RunMirror(open_objects(url), tmp_path / "proxy")
    mirror.pull()
    (tmp_path / "proxy").symlink_to(tiny_store.teacher_run)
    mirror.push()
    return url


def run(tiny: Any, recipe: Any, out: Path | str, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, ["tiny-teacher"], data="photos", out=out, **more)


def test_stage_3_from_urls_is_stage_3_from_folders(tiny_store: Any, proxy: str, bucket: FaultyServer, tmp_path: Path) -> None:
    start = f"s3://runs/{uuid.uuid4().hex}"
    run(tiny_store, RECIPE, start)
    run(tiny_store, RECIPE, tmp_path / "stage2")
    third = replace(RECIPE, stage=3, teacher=TeacherConfig("live", (16, 24)), student=replace(RECIPE.student, sizes_px=(16, 24)))
    starts = {"url": (start, proxy), "folder": (str(tmp_path / "stage2"), tiny_store.teacher_run)}
    for name, (init_from, teacher) in starts.items():
        recipe = replace(third, student=replace(third.student, init_from=init_from))
        bucket.seen.clear()
        run(tiny_store, recipe, tmp_path / name, proxy=teacher)
        fetched = [path for method, path in bucket.seen if method == "GET" and path.endswith(".safetensors")]
        assert len(fetched) == (4 if name == "url" else 0)  # backbone and adapters of both, once
    assert losses(tmp_path / "url") == losses(tmp_path / "folder")
    assert run(tiny_store, replace(third, student=replace(third.student, init_from=start)), tmp_path / "url", proxy=proxy)["already"]


def test_an_altered_copy_is_fetched_again_and_an_altered_object_is_refused(proxy: str) -> None:
    home = local_run(proxy)
    weights = home / "model" / "backbone.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert local_run(proxy) == home
    assert weights.read_bytes() == good
    weights.unlink()
    open_objects(proxy).replace("model/backbone.safetensors", good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CacheDamaged, match=r"model/backbone\.safetensors differs from its manifest"):
        local_run(proxy)
    open_objects(proxy).remove("model/backbone.safetensors")
    with pytest.raises(CacheDamaged, match=r"model/backbone\.safetensors is not there, as its manifest says"):
        local_run(proxy)


def test_a_url_without_a_finished_run_says_so(proxy: str) -> None:
    with pytest.raises(BadInput, match=r"s3://runs/nothing holds no trained model .*: no run was trained there; train with --out"):
        local_run("s3://runs/nothing")
    open_objects(proxy).remove("model/manifest.json")
    with pytest.raises(BadInput, match="it is not finished"):
        local_run(proxy)
    with pytest.raises(BadInput, match="no run was trained there"):
        local_run("s3://no-such-bucket-at-all/run/")
    with pytest.raises(BadInput, match="cannot use the URL"):
        local_run("gopher://host/run")


def test_the_command_takes_urls_and_refuses_bad_ones_in_a_sentence(
    tiny_store: Any, proxy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--store", tiny_store.store.url, "--data", "photos", "--features", "tiny-teacher"]
    settings = [
        "student.architecture=vit-mini",
        "student.sizes_px=[24]",
        "adapter.width=8",
        "run.steps=1",
        "run.batch_size=4",
        "device=cpu",
        "views.photometric=none",
    ]
    words = [word for one in settings for word in ("--set", one)]
    arguments = ["train", "--stage", "3", *common, "--recipe", "1-3", *words, "--set", "teacher.sizes_px=[16]"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--proxy", proxy]) == 0
    assert main([*arguments, "--out", str(tmp_path / "other"), "--proxy", "s3://runs/nothing"]) == 2
    assert "no run was trained there" in capsys.readouterr().err
    start = ["--set", "student.init_from=s3://runs/nothing"]
    assert main([*arguments, *start, "--out", str(tmp_path / "third"), "--proxy", proxy]) == 2
    assert "s3://runs/nothing holds no trained model" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
