"""A teacher in an ONNX file end to end: extracted, by Ray as well, trained from, and found again by repair, fidelity and live targets."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.repair.recorded_teacher import recorded_teacher
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ...teachers.onnx_files import declare, small_graph

Capture = pytest.CaptureFixture[str]


DECLARED = {"input": "image", "patch_output": "grid", "cls": "attention pool", "cls_output": "largest"}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = small_graph(tmp_path / "net.onnx")
    declare(path, **DECLARED)
    return path


def result(capture: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def extract(store: FeatureStore, name: str, *more: str, workers: int = 0) -> int:
    command = ["extract-features", "--store", store.url, "--data", "photos", "--teacher", name, "--codec", "fp32", "--json"]
    return main([*command, "--shard-images", "8", "--statistics-batches", "2", "--workers", str(workers), *more])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_graph_is_extracted_here_or_by_ray_trained_from_and_faithful(
    photos: Any, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, workers: int
) -> None:
    store, _, tmp_path = photos
    monkeypatch.chdir(exported.parent)
    assert extract(store, "net.onnx", "--precision", "auto", workers=workers) == 0, capsys.readouterr().err
    key = result(capsys)["features"]["my-graph"]
    reader = store.features(key)
    assert reader.complete
    row, views = 5, reader.views.read(np.array([5]))
    image = reader.views.dataset.read_image(row // reader.views.views_per_image)
    pixels = render(image, views.crop[0], bool(views.flip[0]), 32, "bicubic", renderer=reader.views.renderer)
    expected = load_teacher(resolve_teacher(str(exported)))(torch.from_numpy(np.array(pixels))[None])
    np.testing.assert_allclose(
        reader.decode(reader.read([row]))[0], reader.statistics.normalize_patch(expected.patch_BHWD.numpy())[0], rtol=0, atol=1e-4
    )
    assert extract(store, "net.onnx") == 0
    assert result(capsys)["shards_missing"] == 0  # resumed: nothing to do
    exported.with_suffix(".toml").unlink()  # the identity says what it said
    words = ["student.architecture='vit-mini'", "student.options={}", "student.sizes_px=[32]", "run.steps=2", "run.batch_size=4"]
    settings = [word for one in [*words, "teacher.names=[]", "teacher.source='live'"] for word in ("--set", one)]
    training = ["train", "--store", store.url, "--data", "photos", "--features", "my-graph", "--recipe", "demo", "--stage", "2", *settings]
    assert main([*training, "--teacher", "net.onnx", "--out", str(tmp_path / "live"), "--json"]) == 0, capsys.readouterr().err
    assert (tmp_path / "live" / "model" / "model.json").is_file()
    capsys.readouterr()
    assert main(["features", "fidelity", key, "--store", store.url, "--sample", "4", "--json"]) == 0  # found where it lay
    assert result(capsys)["patch"]["min"] > 0.9999


def test_a_damaged_shard_is_repaired_by_the_graph_where_it_lay_and_by_no_other(photos: Any, exported: Path, capsys: Capture) -> None:
    store, _, tmp_path = photos
    assert extract(store, str(exported)) == 0, capsys.readouterr().err
    key = result(capsys)["features"]["my-graph"]
    reader = store.features(key)
    (shard,) = (Path(store.url) / "features" / key / "patch").glob("c.1.*")
    whole, graph = shard.read_bytes(), exported.read_bytes()
    row = reader.read([reader.group.shard_span(1)[0]]).patch.tobytes()
    shard.write_bytes(whole.replace(row, bytes(len(row))))
    exported.write_bytes(graph + b"\x12\x00")  # another file, though it computes the same
    for name in (None, str(exported)):
        with pytest.raises(CacheMismatch, match=r"made by a teacher of an ONNX file: .*is not the teacher that was recorded: sha256"):
            recorded_teacher(reader, name)
    assert main(["features", "repair", key, "--store", store.url]) != 0
    assert "is not the teacher that was recorded" in "".join(capsys.readouterr())
    assert shard.read_bytes() != whole
    (tmp_path / "kept.onnx").write_bytes(graph)
    assert recorded_teacher(reader, str(tmp_path / "kept.onnx")).identity() == reader.identity["teacher"]
    assert main(["features", "repair", key, "--store", store.url, "--teacher", str(tmp_path / "kept.onnx")]) == 0
    assert shard.read_bytes() == whole
    assert main(["features", "cp", key, "--store", store.url, "--to", str(tmp_path / "copy")]) == 0
    exported.write_bytes(graph)
    assert recorded_teacher(FeatureStore.open(str(tmp_path / "copy")).features(key)).weights_path == exported
    with pytest.raises(CacheMismatch, match=r"my_teacher\.py:build is no FILE\.onnx"):
        recorded_teacher(reader, "my_teacher.py:build")
    shutil.rmtree(Path(store.url) / "teachers")
    with pytest.raises(CacheMismatch, match=r"noted nowhere in the store; give it: --teacher FILE\.onnx"):
        recorded_teacher(store.features(key))


@pytest.mark.parametrize("change", [{"patch_output": "patches"}, {"stride_px": 16}, {"layout": "rows"}])
def test_a_mistake_in_the_declaration_ends_with_status_2_and_no_traceback(
    photos: Any, exported: Path, capsys: Capture, change: dict[str, Any]
) -> None:
    store, _, _ = photos
    assert extract(store, declare(exported, **{**DECLARED, **change})) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert store.list_features() == []
