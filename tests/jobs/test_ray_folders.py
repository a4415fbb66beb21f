"""Machines that are not as they should be: a store that cannot be written, results that cannot be kept, Ray's folders of others."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs import ray_folders as places
from eupe_pipeline.jobs.estimates.extraction import store_speed
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.ray_session import has_token, refuse_open_ports
from eupe_pipeline.jobs.runs.reading_leases import leases
from eupe_pipeline.pipeline.reports.catalog import copy_feature_set, list_store, show_features, verify_features
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.objects.probes import probe
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import AdapterConfig, RunConfig, StudentConfig, TrainRecipe

from .evaluation_request import evaluate_knn
from .training_request import train

Event = dict[str, Any]


@pytest.fixture
def read_only(tiny_store: Any, tmp_path: Path) -> Iterator[str]:
    """A copy of the store on a file system that is mounted read-only."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        shutil.copytree(tiny_store.store.url, folder / "store")
        (folder / "store" / "leases" / tiny_store.features().key).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield str(folder / "store")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class TestAReadOnlyStore:
    def test_is_read_copied_listed_verified_with_one_warning_and_no_lease(self, read_only: str, tmp_path: Path, tiny_store: Any) -> None:
        said: list[Mapping[str, Any]] = []
        store = FeatureStore.open(read_only)
        with leases(store, store.list_features(), "train", said.append):
            assert [event["event"] for event in said] == ["warning"]
            assert "read-only" in said[0]["text"]
            assert (store.features("tiny-int8").read([3]).patch == tiny_store.features("tiny-int8").read([3]).patch).all()
        said.clear()
        key = tiny_store.features().key
        copied = copy_feature_set(key=key, store=read_only, target=str(tmp_path / "target"), on_event=said.append)
        assert copied["complete"]
        assert len([event for event in said if event["event"] == "warning"]) == 1
        assert len(list_store(store=read_only, on_event=said.append)["features"]) == 3
        assert show_features(key=key, store=read_only, on_event=said.append)["complete"]
        assert verify_features(key=key, store=read_only, on_event=said.append)["findings"] == []

    def test_that_refuses_keeps_the_right_error(self, read_only: str, tiny_store: Any) -> None:
        objects = FeatureStore.open(read_only).objects
        for key in ("new", f"leases/{tiny_store.features().key}/new.json", "folder/new"):
            with pytest.raises(StoreUnavailable, match="the file system is read-only"):
                objects.create(key, [b"x"])
            with pytest.raises(StoreUnavailable, match="the file system is read-only"):
                objects.replace(key, b"x")

    def test_is_evaluated_with_the_same_result(self, read_only: str, tiny_store: Any, tmp_path: Path) -> None:
        said: list[Event] = []
        size = EvaluationSize(batch_size=8, device="cpu", allow_overlap=True)
        run, out, store = str(tiny_store.teacher_run), tmp_path / "out", FeatureStore.open(read_only)
        found = evaluate_knn(run, store, "photos", "photos", size=size, out=out, on_event=said.append)
        assert any("are not kept for the next evaluation" in event.get("text", "") for event in said)
        shutil.copytree(read_only, tmp_path / "store")
        again = evaluate_knn(run, FeatureStore.open(tmp_path / "store"), "photos", "photos", size=size, out=tmp_path / "other")
        assert {key: found[key] for key in ("cls", "mean_patch")} == {key: again[key] for key in ("cls", "mean_patch")}

    def test_is_trained_from_with_one_warning(self, read_only: str, tmp_path: Path) -> None:
        recipe = TrainRecipe(
            stage=2, precision="fp32", device="cpu", student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (24,)),
            adapter=AdapterConfig(32), run=RunConfig(2, 6, log_every=1, reader_threads=2),
        )  # fmt: skip
        said: list[Event] = []
        summary = train(recipe, FeatureStore.open(read_only), ["tiny-teacher"], data="photos", out=tmp_path / "run", on_event=said.append)
        assert not summary["already"]
        assert [event["text"][:8] for event in said if event["event"] == "warning"] == ["no lease"]
        assert (tmp_path / "run" / "summary.json").is_file()

    def test_has_a_reading_speed(self, read_only: str) -> None:
        said: list[Event] = []
        assert store_speed(FeatureStore.open(read_only), said.append) > 0
        assert [event["event"] for event in said] == ["warning"]
        assert "cannot be written" in said[0]["text"]


def test_a_result_that_cannot_be_kept_is_given_with_a_warning(tiny_store: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[Event] = []
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    found = evaluate_knn(
        str(tiny_store.teacher_run), FeatureStore.open(tmp_path / "store"), "photos", "photos", out=tmp_path / "file" / "below",
        size=EvaluationSize(batch_size=8, device="cpu", allow_overlap=True), on_event=said.append,
    )  # fmt: skip
    assert found["record"] is None
    assert found["cls"]["ours"] > 0
    assert any("the result is not kept" in event.get("text", "") for event in said)


def test_probes_are_removed_and_those_of_killed_plans_are_swept(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    for name in ("0123abcd", "1000-0123abcd", "99999999999-0123abcd"):
        store.objects.create(f"probes/{name}", [b"left"])
    with probe(store.objects, b"mine") as key:
        assert store.objects.read(key) == b"mine"
    assert store.objects.names("probes") == ["99999999999-0123abcd"]  # somebody's who is at work
    store.objects.remove("probes/99999999999-0123abcd")
    with probe(store.objects, b"mine"):
        pass
    assert not (tmp_path / "store" / "probes").exists()


def test_a_set_by_other_weights_is_made_with_a_warning_that_names_both(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    shutil.copytree(tiny_store.teacher_run, tmp_path / "teacher")
    url, said = str(tmp_path / "store"), list[Event]()
    options = ExtractOptions(url, "photos", (TeacherRequest(str(tmp_path / "teacher")),), ViewSpec(views_per_image=1), workers=0)
    first = extract_features(options, said.append)
    assert "other_weights" not in first
    assert [event for event in said if event["event"] == "warning"] == []
    weights = next((tmp_path / "teacher").rglob("backbone.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-40] ^= 1
    weights.write_bytes(data)
    second = extract_features(options, said.append)
    (name, old), (_, new) = next(iter(first["features"].items())), next(iter(second["features"].items()))
    assert old != new
    store = FeatureStore.open(url)
    theirs, ours = (store.features_identity(key)["teacher"]["weights_sha256"] for key in (old, new))
    assert second["other_weights"] == {name: {old: theirs}}
    text = " ".join(event["text"] for event in said if event["event"] == "warning")
    assert theirs in text
    assert ours in text


class TestRaysFolder:
    def test_is_its_own_where_that_works(self, tmp_path: Path) -> None:
        assert places.folder_flaw(Path("/tmp/eupe-not-there")) == ""

    def test_is_another_where_the_name_is_too_long_for_sockets(self, tmp_path: Path) -> None:
        folder, why = places.ray_folder({"RAY_TMPDIR": str(tmp_path / ("long" * 20))})
        assert "too long" in why
        assert len(str(folder)) < 40
        assert places.folder_flaw(folder) == ""

    def test_is_another_where_it_is_another_users(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(places, "folder_flaw", lambda folder: "it is another user's" if str(folder) == "/x/ray" else "")
        folder, why = places.ray_folder({"RAY_TMPDIR": "/x"})
        assert (folder.name, why) == (f"ray-{os.getuid()}", "it is another user's")

    def test_that_is_nowhere_is_one_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "folder_flaw", lambda folder: f"{folder} cannot be written by this user")
        with pytest.raises(BadInput, match="set RAY_TMPDIR"):
            places.ray_folder({})

    def test_holds_the_objects_where_shared_memory_cannot(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(places, "OBJECT_STORE_BYTES", 1 << 60)
        chosen = places.ray_init_folders({"TMPDIR": "/tmp"})
        assert Path(chosen["_plasma_directory"]).is_dir()
        monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path / "none")
        assert "is not there" in places.shared_memory_flaw()


def test_a_token_is_looked_for_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("eupe_pipeline.jobs.ray_session.home_folder", lambda: None)
    assert not has_token({"RAY_AUTH_MODE": "token"})
    with pytest.raises(BadInput, match="RAY_AUTH_MODE=token"):
        refuse_open_ports("10.0.0.7:6379", {"RAY_AUTH_MODE": "token"})
