"""`extract-features --layers`: what is stored is what the teacher gives; planned, sampled, resumed, verified, repaired, copied, grown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.extraction import PlanOptions, plan_extraction
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.catalog import verify_features
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.views.pixels import view_pixels
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from numpy.typing import NDArray

from ...conftest import write_images

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExtractOptions]:
    """A folder with 12 photos and the run of a teacher of four blocks, and an extraction of two of them into a store of its own."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("deep")
    write_images(root / "images", 12)
    torch.manual_seed(4)
    student = Student(build_encoder({"name": "vit-mini", "depth": 4, "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, root / "teacher" / "model", size_px=32, targets={})
    store = FeatureStore.create(str(root / "store"))
    build_index(store.objects, str(root / "images"), "photos")
    request = (TeacherRequest(str(root / "teacher")),)
    options = ExtractOptions(store.url, "photos", request, ViewSpec(views_per_image=2, seed=3), 4, "fp32", batch_size=8, workers=0)
    return root, replace(options, layers=LAYERS)


def features(options: ExtractOptions) -> FeatureReader:
    return FeatureStore.open(options.store).features(extract_features(options)["features"]["teacher"])


def everything(reader: FeatureReader) -> dict[str, NDArray[np.float32]]:
    """Decoded tokens of all rows, by array."""
    rows = np.arange(reader.rows)
    final = reader.read(rows)
    assert final.cls is not None
    layers = {f"patch.{layer}": reader.decode_layer(one) for layer, one in reader.read_layers(rows, reader.layout.layers).items()}
    return {"cls": np.asarray(final.cls), "patch": reader.decode(final), **layers}


def own_store(deep: Any, tmp_path: Path) -> ExtractOptions:
    """The extraction into a copy of the store, for a test that changes it."""
    root: Path
    options: ExtractOptions
    root, options = deep
    features(options)
    shutil.copytree(root / "store", tmp_path / "store")
    return replace(options, store=str(tmp_path / "store"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "leases" not in path.parts}


def test_stored_layers_are_timm_s_intermediates_of_the_recorded_views(deep: Any) -> None:
    _, options = deep
    reader = features(options)
    teacher = load_teacher(resolve_teacher(options.teachers[0].name))
    backbone: Any = teacher.encoder.backbone
    rows = np.arange(8)  # one forward of the extraction
    seen = torch.from_numpy(view_pixels(reader.views, rows, teacher.spec.preprocessing.input))
    with torch.no_grad():
        x = teacher.spec.preprocessing.apply(seen)
        maps = backbone.forward_intermediates(x, indices=[0, 2], norm=True, intermediates_only=True)
    stored = reader.read_layers(rows, LAYERS)
    for layer, map_BCHW in zip(LAYERS, maps, strict=True):
        statistics = reader.statistics.layers[layer]
        np.testing.assert_array_equal(stored[layer].codes, statistics.normalize_patch(map_BCHW.permute(0, 2, 3, 1).numpy()))
        own = everything(reader)[f"patch.{layer}"].reshape(-1, reader.patch_dim)
        np.testing.assert_allclose(own.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(own.std(0), 1, atol=1e-3)


def test_the_final_tokens_and_their_statistics_are_those_of_a_set_without_layers(deep: Any) -> None:
    _, options = deep
    layered, plain = features(options), features(replace(options, layers=()))
    assert plain.identity["layout"].keys() == {"cls_dim", "patch_dim", "grid", "codec", "tokens"}
    assert "layers" not in plain.identity["statistics"]
    assert layered.identity["teacher"] == plain.identity["teacher"]
    assert layered.statistics.digest == plain.statistics.digest
    assert {key: value for key, value in layered.identity["statistics"].items() if key != "layers"} == plain.identity["statistics"]
    ours, theirs = everything(layered), everything(plain)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    assert sorted(ours) == ["cls", "patch", "patch.1", "patch.3"]


def test_the_last_block_changes_nothing_and_no_order_does(deep: Any) -> None:
    _, options = deep
    assert features(replace(options, layers=(4, 3, 1))).key == features(options).key
    assert features(replace(options, layers=(4,))).key == features(replace(options, layers=())).key


@pytest.mark.parametrize("less", [{"tokens_per_view": 5}, {"grid": (3, 3), "tokens_per_view": 4}])
def test_sampling_and_resampling_take_the_same_of_every_layer(deep: Any, less: dict[str, Any]) -> None:
    _, options = deep
    whole, some = features(options), features(replace(options, **less))
    found, ours = everything(whole), everything(some)
    if "grid" not in less:
        position = some.read(np.arange(some.rows)).position
        assert position is not None
        for name in ("patch", "patch.1", "patch.3"):
            np.testing.assert_array_equal(ours[name], take_positions(found[name], position))
    assert {ours[name].shape for name in ("patch.1", "patch.3")} == {ours["patch"].shape}
    fresh = fidelity(FidelityOptions(options.store, some.key, TeacherRequest(options.teachers[0].name), 6))
    assert min(fresh[name]["min"] for name in ("patch", "cls", "patch.1", "patch.3")) > 1 - 1e-5


def test_plan_and_dry_run_tell_the_bytes_that_are_stored(deep: Any) -> None:
    root, options = deep
    asked = replace(options, codec="int8", tokens_per_view=6)
    expected = extract_features(replace(asked, dry_run=True))["bytes_expected"]["teacher"]
    plain = extract_features(replace(asked, dry_run=True, layers=()))["bytes_expected"]["teacher"]
    assert expected == plain + 24 * 2 * (6 * 48 + 6 * 2)
    planned = plan_extraction(PlanOptions(asked, {"name": "vit-mini", "depth": 1}, 16, student_images_per_s=100.0, batches=1))
    assert planned["for photos"]["cost"]["teacher"]["bytes"] == expected
    assert planned["teachers"]["teacher"]["layers"] == [1, 3]
    committed = extract_features(asked)["bytes_committed"]
    assert expected < committed < 1.1 * expected + 8192
    (key,) = [name for name in FeatureStore.open(options.store).list_features() if name == features(asked).key]
    on_disk = sum(path.stat().st_size for path in (root / "store" / "features" / key).glob("*/c.*"))
    assert on_disk == committed


def test_an_extraction_goes_on_after_a_kill_and_every_byte_is_as_without(deep: Any, tmp_path: Path) -> None:
    options = own_store(deep, tmp_path)
    reader = features(options)
    folder = Path(options.store) / "features" / reader.key
    whole = contents(folder)
    (folder / "commits" / "000001.json").unlink()  # killed between the objects and the record
    next((folder / "patch.3").glob("c.1.*")).unlink()
    (folder / "commits" / "000002.json").unlink()  # and before any object
    for path in folder.glob("*/c.2.*"):
        path.unlink()
    summary = extract_features(options)
    assert (summary["shards_missing"], summary["views_done"]) == (0, 16)
    assert contents(folder) == whole
    assert extract_features(options)["views_done"] == 0


def test_statistics_measured_on_a_share_keep_no_forwards_and_are_of_each_layer(deep: Any) -> None:
    _, options = deep
    reader = features(replace(options, statistics_batches=1))
    assert set(reader.identity["statistics"]["layers"]) == {"1", "3"}
    again = features(replace(options, statistics_batches=2, statistics_from=(reader.key,)))
    assert again.statistics.described() == reader.statistics.described()
    plain = features(replace(options, statistics_batches=2, statistics_from=(reader.key,), layers=()))
    assert plain.statistics.digest == reader.statistics.digest
    assert not plain.statistics.layers
    with pytest.raises(BadInput, match=r"has no statistics of layer 2; give a set with these --layers"):
        extract_features(replace(options, statistics_from=(reader.key,), layers=(1, 2)))
    phis = features(replace(options, normalisation="phi-s"))
    assert phis.statistics.layers[3].patch_matrix is not None
    of_layer = everything(phis)["patch.3"].reshape(-1, 48)
    np.testing.assert_allclose(np.square(of_layer - of_layer.mean(0)).mean(), 1, atol=1e-2)


@pytest.mark.parametrize("array", ["patch.3", "patch.1_scale", "statistics/patch.3_mean"])
def test_a_flipped_bit_of_a_layer_is_found_and_repaired_and_nothing_else_is_touched(deep: Any, tmp_path: Path, array: str) -> None:
    root, options = deep
    options = own_store((root, replace(options, codec="int8")), tmp_path)
    key = features(options).key
    before = contents(tmp_path / "store")
    damaged = next((Path(options.store) / "features" / key / array).glob("c.0" if "statistics" in array else "c.1.*"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 4
    damaged.write_bytes(data)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    found = verify_features(store=options.store, key=key)["findings"]
    assert len(found) == 1
    assert array in found[0]["where"]
    told = repair_features(RepairOptions(options.store, key, TeacherRequest(options.teachers[0].name)))
    assert told["left"] == []
    assert contents(tmp_path / "store") == before
    assert [path for path, time in times.items() if path.exists() and path.stat().st_mtime_ns != time] == [damaged]
    assert verify_features(store=options.store, key=key)["findings"] == []


def test_a_lost_identity_is_found_again_and_a_copy_has_its_layers(deep: Any, tmp_path: Path) -> None:
    options = own_store(deep, tmp_path)
    reader = features(options)
    identity = Path(options.store) / "features" / reader.key / "identity.json"
    before = identity.read_bytes()
    identity.unlink()
    assert repair_features(RepairOptions(options.store))["left"] == []
    assert identity.read_bytes() == before
    store = FeatureStore.open(options.store)
    copied = copy_features(store, reader.key, FeatureStore.create(str(tmp_path / "copy")))
    ours, theirs = everything(copied), everything(store.features(reader.key))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    on = extract_features(replace(options, store=str(tmp_path / "copy")))
    assert (on["features"]["teacher"], on["views_done"]) == (reader.key, 0)


def test_a_dataset_that_grew_takes_layers_over_and_computes_the_new_rows_alone(deep: Any, tmp_path: Path) -> None:
    root, options = deep
    shutil.copytree(root / "images", tmp_path / "images")
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tmp_path / "images"), "photos")
    ours = replace(options, store=store.url, images_per_shard=5)
    earlier = everything(features(ours))
    for n in range(2):
        shutil.copy(next((tmp_path / "images").rglob("000.png")), tmp_path / "images" / "class0" / f"z{n}.png")
    build_index(store.objects, str(tmp_path / "images"), "photos")
    summary = extract_features(ours)
    assert (summary["views_done"], summary["shards_taken_over"]) == (4, 2)
    grown = everything(FeatureStore.open(store.url).features(summary["features"]["teacher"]))
    for name, values in earlier.items():
        np.testing.assert_array_equal(grown[name][: len(values)], values)
    assert verify_features(store=store.url)["findings"] == []


@pytest.mark.parametrize(("layers", "text"), [
    ((1, 5), r"teacher teacher has 4 blocks, and layer 5 was asked for \(of 1, 5\); give numbers of 1 to 3"),
])  # fmt: skip
def test_a_block_that_is_not_there_is_refused_before_any_work(deep: Any, tmp_path: Path, layers: Any, text: str) -> None:
    root, options = deep
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(root / "images"), "photos")
    asked = replace(options, store=store.url, layers=layers)
    for dry_run in (True, False):
        with pytest.raises(BadInput, match=text):
            extract_features(replace(asked, dry_run=dry_run))
    with pytest.raises(BadInput, match=text):
        plan_extraction(PlanOptions(asked, student_images_per_s=1.0))
    assert store.list_features() == store.list_view_sets() == []


def test_the_command_line_stores_layers_and_says_so(deep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, options = deep
    words = ["--store", options.store, "--data", "photos", "--views", "2", "--shard-images", "4", "--codec", "fp32", "--batch-size", "8"]
    words += ["--teacher", options.teachers[0].name, "--workers", "0", "--json", "--seed", "3"]
    for bad, text in (
        ("4,x", "is not N,N,…"),
        ("0", "counted from 1"),
        ("1,1", "named twice"),
        ("9", "has 4 blocks"),
        ("-1", "is not N,N"),
    ):
        assert main(["extract-features", *words, "--layers", bad]) == 2
        assert text in "".join(capsys.readouterr())
    assert main(["extract-features", *words, "--layers", "1,3,4"]) == 0
    key = json.loads(capsys.readouterr().out.splitlines()[-1])["features"]["teacher"]
    assert key == features(options).key
    assert main(["features", "show", key, "--store", options.store]) == 0
    shown = capsys.readouterr().out
    assert "layers: 1, 3" in shown
    assert "patch.3_std" in shown
    assert main(["features", "ls", "--store", options.store]) == 0
    listed = capsys.readouterr().out
    assert "layers" in next(line for line in listed.splitlines() if "codec" in line)  # one table, also of sets without layers
    assert next(line for line in listed.splitlines() if key in line).endswith("1, 3")
    assert main(["features", "fidelity", key, "--store", options.store, "--teacher", options.teachers[0].name, "--sample", "5"]) == 0
    assert "patch.1" in capsys.readouterr().out
