"""A teacher of one's own end to end: its file goes to Ray workers as bytes, and fidelity, repair and live targets find it again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.canaries import check_canary
from eupe_pipeline.jobs.repair.recorded_teacher import recorded_teacher
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ...teachers.own_teachers import own_file

Capture = pytest.CaptureFixture[str]


def result(capture: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def extract(store: FeatureStore, name: str, *more: str, workers: int = 0) -> int:
    command = ["extract-features", "--store", store.url, "--data", "photos", "--teacher", name, "--codec", "fp32", "--json"]
    return main([*command, "--shard-images", "8", "--statistics-batches", "2", "--workers", str(workers), *more])


def test_the_pages_example_is_extracted_by_ray_trained_from_and_faithful(
    photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    store, _, _ = photos
    name = own_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert extract(store, "my_teacher.py:build", workers=1) == 0  # a relative path, and workers of other folders
    key = result(capsys)["features"]["my-net"]
    reader = store.features(key)
    assert reader.complete
    row, views = 5, reader.views.read(np.array([5]))
    image = reader.views.dataset.read_image(row // reader.views.views_per_image)
    pixels = render(image, views.crop[0], bool(views.flip[0]), 64, "bicubic", renderer=reader.views.renderer)
    expected = load_teacher(resolve_teacher(name))(torch.from_numpy(np.array(pixels))[None])
    np.testing.assert_allclose(
        reader.decode(reader.read([row]))[0], reader.statistics.normalize_patch(expected.patch_BHWD.numpy())[0], rtol=0, atol=2e-5
    )
    small = ["student.architecture='vit-mini'", "student.options={}", "student.sizes_px=[32]", "run.steps=2", "run.batch_size=4"]
    settings = [word for one in [*small, "teacher.names=[]"] for word in ("--set", one)]
    training = [
        "train",
        "--store",
        store.url,
        "--data",
        "photos",
        "--features",
        "my-net",
        "--recipe",
        "demo",
        "--stage",
        "2",
        *settings,
        "--json",
    ]
    live = ["--set", "teacher.source='live'", "--teacher", "my_teacher.py:build"]
    for out, more in (("cached", []), ("live", live)):
        assert main([*training, "--out", str(tmp_path / out), *more]) == 0, capsys.readouterr().err
        assert (tmp_path / out / "model" / "model.json").is_file()
    capsys.readouterr()
    assert main(["features", "fidelity", key, "--store", store.url, "--sample", "4", "--json"]) == 0  # found where it lay
    assert result(capsys)["patch"]["min"] > 0.9999


def test_a_changed_file_begins_another_set_and_says_so(photos: Any, tmp_path: Path, capsys: Capture) -> None:
    store, _, _ = photos
    name = own_file(tmp_path)
    assert extract(store, name) == 0
    first = result(capsys)["features"]["my-net"]
    assert extract(store, own_file(tmp_path, ("patch.amax(", "patch.amin("))) == 0
    said = result(capsys)
    second = said["features"]["my-net"]
    assert first != second
    assert said["other_weights"] == {"my-net": {first: store.features(first).identity["teacher"]["architecture"]["source_sha256"]}}
    with pytest.raises(CacheMismatch, match=r"was made by a teacher of a Python file: .*is not the teacher that was recorded"):
        recorded_teacher(store.features(first))  # where it lay is another file now
    with pytest.raises(CacheMismatch, match=r"is not the teacher that was recorded: build of .* wanted build of one with"):
        recorded_teacher(store.features(first), name)
    moved = own_file(tmp_path, name="kept.py")
    assert recorded_teacher(store.features(first), moved).identity() == store.features(first).identity["teacher"]
    assert recorded_teacher(store.features(second)).identity() == store.features(second).identity["teacher"]


def test_another_file_is_not_run_to_find_out_that_it_is_another(photos: Any, tmp_path: Path, capsys: Capture) -> None:
    store, _, _ = photos
    assert extract(store, own_file(tmp_path)) == 0
    key = result(capsys)["features"]["my-net"]
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert main(["features", "fidelity", key, "--store", store.url, "--teacher", f"{tmp_path / 'other.py'}:build"]) == 2
    assert "is not the teacher that was recorded" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_weights_are_found_again_where_they_lay_and_copies_of_a_store_know_it(photos: Any, tmp_path: Path, capsys: Capture) -> None:
    store, _, _ = photos
    name = own_file(tmp_path)
    torch.save(load_teacher(resolve_teacher(name)).encoder.backbone.state_dict(), tmp_path / "net.pt")
    assert extract(store, name, "--weights", f"{name}={tmp_path / 'net.pt'}") == 0
    key = result(capsys)["features"]["my-net"]
    assert recorded_teacher(store.features(key)).weights_path == tmp_path / "net.pt"
    assert main(["features", "cp", key, "--store", store.url, "--to", str(tmp_path / "copy")]) == 0
    copied = FeatureStore.open(str(tmp_path / "copy")).features(key)
    assert recorded_teacher(copied).weights_path == tmp_path / "net.pt"
    assert main(["features", "verify", "--store", store.url]) == 0
    shutil.rmtree(Path(store.url) / "teachers")
    with pytest.raises(CacheMismatch, match=r"noted nowhere in the store; give it: --teacher FILE\.py:build"):
        recorded_teacher(store.features(key))
    assert recorded_teacher(store.features(key), name, tmp_path / "net.pt").weights_sha256 == copied.identity["teacher"]["weights_sha256"]


def test_tensors_that_no_digest_sees_are_seen_by_the_canary(photos: Any, tmp_path: Path) -> None:
    store, _, _ = photos
    torch.save(torch.zeros(48), tmp_path / "shift.pt")
    name = own_file(
        tmp_path, ("        patch = self.patches", f"        self.shift = torch.load({str(tmp_path / 'shift.pt')!r}, weights_only=True)\n"
                   "        patch = self.shift + self.patches"),
    )  # fmt: skip
    spec = resolve_teacher(name)
    check_canary(store, load_teacher(spec))
    torch.save(torch.linspace(-5, 5, 48), tmp_path / "shift.pt")
    assert resolve_teacher(name).identity() == spec.identity()
    with pytest.raises(CacheMismatch, match="my-net"):
        check_canary(store, load_teacher(spec))


def test_a_damaged_shard_is_repaired_by_the_file_where_it_lay_and_by_no_other(photos: Any, tmp_path: Path, capsys: Capture) -> None:
    store, _, _ = photos
    name = own_file(tmp_path)
    assert extract(store, name) == 0
    key = result(capsys)["features"]["my-net"]
    (shard,) = (Path(store.url) / "features" / key / "patch").glob("c.1.*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    own_file(tmp_path, ("patch.amax(", "patch.amin("))
    assert main(["features", "repair", key, "--store", store.url]) != 0
    assert "is not the teacher that was recorded" in "".join(capsys.readouterr())
    assert shard.read_bytes() != whole
    own_file(tmp_path)
    assert main(["features", "repair", key, "--store", store.url]) == 0
    assert shard.read_bytes() == whole
    assert extract(store, name) == 0
    assert result(capsys)["shards_missing"] == 0


@pytest.mark.parametrize(("old", "new"), [("import torch", "import torhc"), ("def build", "def bild"), ("size_px=64", "size_px=63")])
def test_a_mistake_in_the_file_ends_with_status_2_and_no_traceback(
    photos: Any, tmp_path: Path, capsys: Capture, old: str, new: str
) -> None:
    store, _, _ = photos
    assert extract(store, own_file(tmp_path, (old, new))) == 2
    said = capsys.readouterr().err
    assert "my_teacher.py" in said
    assert "Traceback" not in said
    assert store.list_features() == []
