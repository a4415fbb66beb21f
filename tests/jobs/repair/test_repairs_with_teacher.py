"""Repair never discards what it cannot replace: damage of one thing is not taken for damage of another, prerequisites come first."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.jobs.evaluation.pooled_features import pooled_features
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.extraction.shard_worker import ShardWorker
from eupe_pipeline.jobs.repair.repair import RepairOptions, repair_features
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.shards import ledger, shards
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec

from ...conftest import make_teacher

GOLDEN = Path(__file__).parents[1].parent / "data" / "golden_store" / "written"
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Extracted:
    """A store, the images it was made from, and its teacher's run."""

    folder: Path
    images: Path
    teacher: Path
    key: str
    views: str
    dataset: str

    def path(self, name: str) -> Path:
        return self.folder / name.format(features=f"features/{self.key}", views=f"views/{self.views}", dataset=f"datasets/{self.dataset}")

    def flip(self, name: str, place: int = 0) -> None:
        path = self.path(name)
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)

    def spoil(self, name: str, place: int = 0) -> None:
        """Change two bytes: more than a flipped bit, which is undone by trial in a file as small as these."""
        self.flip(name, place)
        self.flip(name, place + 7)

    def contents(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def repair(self, with_teacher: bool = True, **values: Any) -> dict[str, Any]:
        return repair_features(
            RepairOptions(str(self.folder), self.key, teacher=TeacherRequest(str(self.teacher)) if with_teacher else None, **values)
        )

    def verified(self, capsys: Capture) -> tuple[int, list[dict[str, Any]]]:
        """The status and the findings of `features verify`."""
        status = main(["features", "verify", self.key, "--store", str(self.folder), "--json"])
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]


@pytest.fixture(scope="module")
def template(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    root = tmp_path_factory.mktemp("template")
    shutil.copytree(tiny_store.teacher_run.parent / "images", root / "images")
    store = FeatureStore.create(str(root / "store"))
    dataset = build_index(store.objects, str(root / "images"), "photos")
    request = TeacherRequest(str(tiny_store.teacher_run))
    options = ExtractOptions(
        store.url, "photos", (request,), ViewSpec(views_per_image=2, seed=3), 4, "int8", statistics_batches=3, workers=0
    )
    key = extract_features(options)["features"]["teacher"]
    return Extracted(root / "store", root / "images", tiny_store.teacher_run, key, store.features(key).views.key, dataset.key)


@pytest.fixture
def extracted(template: Extracted, tmp_path: Path) -> Extracted:
    """A fresh copy of the store."""
    shutil.copytree(template.folder, tmp_path / "store")
    return Extracted(tmp_path / "store", template.images, template.teacher, template.key, template.views, template.dataset)


@pytest.fixture
def unmounted(template: Extracted) -> Any:
    """The images are not there."""
    aside = template.images.with_name("aside")
    template.images.rename(aside)
    yield
    aside.rename(template.images)


@pytest.mark.parametrize("how", ["flip", "missing", "empty"])
def test_a_damaged_index_is_one_finding_and_no_shard_is_touched(extracted: Extracted, how: str, capsys: Capture) -> None:
    before, index = extracted.contents(), extracted.path("{dataset}/index.parquet")
    stamps = {path: path.stat().st_mtime_ns for path in extracted.folder.rglob("*") if path.is_file() and path != index}
    if how == "flip":
        extracted.flip("{dataset}/index.parquet", 200)
    else:
        index.unlink() if how == "missing" else index.write_bytes(b"")
    status, found = extracted.verified(capsys)
    assert (status, [one["kind"] for one in found]) == (1, ["index"])
    result = extracted.repair(with_teacher=False)
    assert (result["damaged"], result["repaired"], result["left"]) == ({"features": {}, "views": {}}, [], [])
    assert extracted.contents() == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.usefixtures("unmounted")
def test_without_its_images_a_damaged_index_stays_and_so_does_everything_else(extracted: Extracted, capsys: Capture) -> None:
    extracted.path("{dataset}/index.parquet").write_bytes(b"")
    before = extracted.contents()
    assert main(["features", "repair", extracted.key, "--store", str(extracted.folder)]) == 1
    assert f"eupe-pipeline index SOURCE --name photos --store {extracted.folder}" in capsys.readouterr().out
    assert extracted.contents() == before


@pytest.mark.usefixtures("unmounted")
def test_without_its_images_one_bad_byte_costs_its_own_row_and_no_other(extracted: Extracted) -> None:
    step = FeatureStore.open(extracted.folder).features(extracted.key).empty(1).patch.nbytes + 4
    whole = FeatureStore.open(extracted.folder).features(extracted.key).read(np.arange(8, 16)).patch
    extracted.spoil("{features}/patch/c.1.0.0.0", 3 * step)
    before = extracted.contents()
    result = extracted.repair()
    assert (result["repaired"], len(result["left"])) == ([], 1)
    assert "is not at" in result["left"][0]
    assert extracted.contents() == before
    rows = np.setdiff1d(np.arange(8, 16), [11])
    np.testing.assert_array_equal(FeatureStore.open(extracted.folder).features(extracted.key).read(rows).patch, whole[rows - 8])


@pytest.mark.usefixtures("unmounted")
def test_what_needs_no_images_is_repaired_beside_what_does(extracted: Extracted) -> None:
    before = extracted.contents()
    for name in ("{views}/crop/c.2.0", "{views}/zarr.json", "{features}/patch/zarr.json", "{features}/statistics/patch_mean/c.0"):
        extracted.path(name).write_bytes(b"")
    extracted.flip("{features}/commits/000004.json", 100)
    extracted.path("{features}/patch/c.5.0.0.0").unlink()
    result = extracted.repair()
    assert [line.split()[1] for line in result["left"]] == [f"features/{extracted.key}/patch/c.5.0.0.0"]
    after = extracted.contents()
    assert {name for name in before if after.get(name) != before[name]} == {f"features/{extracted.key}/patch/c.5.0.0.0"}


def test_verify_lists_all_damage_and_a_dry_run_says_what_repair_then_does(extracted: Extracted, capsys: Capture) -> None:
    before = extracted.contents()
    damaged = {
        "eupe-store.json": "marker", "{dataset}/identity.json": "identity", "{dataset}/index.parquet": "index",
        "{views}/identity.json": "identity", "{views}/flip/zarr.json": "metadata", "{views}/commits/000001.json": "record",
        "{views}/pixel_digest/c.3.0": "shard", "{features}/identity.json": "identity", "{features}/cls/zarr.json": "metadata",
        "{features}/statistics/cls_std/c.0": "statistics", "{features}/commits/000002.json": "record", "{features}/cls/c.4.0": "shard",
    }  # fmt: skip
    for name in damaged:
        (extracted.spoil if "/c." in name else extracted.flip)(name, extracted.path(name).stat().st_size // 3)
    canary = next(extracted.folder.glob("canaries/*"))
    canary.write_bytes(b"")
    status, found = extracted.verified(capsys)
    wanted = {str(extracted.path(name).relative_to(extracted.folder)): kind for name, kind in damaged.items()}
    wanted[f"canaries/{canary.name}"] = "canary"
    assert (status, {one["where"]: one["kind"] for one in found}) == (1, wanted)
    assert all(one["way_out"] and one["source"] for one in found)
    state = extracted.contents()
    planned = extracted.repair(dry_run=True)
    assert extracted.contents() == state
    done = extracted.repair()
    assert {one["where"] for one in planned["findings"]} == set(done["rebuilt"]) == set(wanted)
    assert {one["where"]: one["source"] for one in planned["findings"]} == done["rebuilt"]
    assert done["left"] == []
    assert extracted.contents() == before
    assert extracted.verified(capsys) == (0, [])


def test_a_given_teacher_that_did_not_make_the_set_is_refused_before_anything_is_done(extracted: Extracted, tmp_path: Path) -> None:
    make_teacher(tmp_path / "teacher", seed=2)
    extracted.path("{views}/zarr.json").write_bytes(b"")
    extracted.path("{views}/zarr.json").write_bytes(extracted.path("{views}/crop/zarr.json").read_bytes())
    extracted.spoil("{features}/patch/c.0.0.0.0")
    before = extracted.contents()
    result = repair_features(RepairOptions(str(extracted.folder), extracted.key, teacher=TeacherRequest(str(tmp_path / "teacher"))))
    assert "weights_sha256" in result["left"][0]
    assert {name for name, data in before.items() if extracted.contents()[name] != data} == {f"views/{extracted.views}/zarr.json"}
    with pytest.raises(CacheMismatch, match="weights_sha256"):  # now that the set can be opened
        repair_features(RepairOptions(str(extracted.folder), extracted.key, teacher=TeacherRequest(str(tmp_path / "teacher"))))


def test_a_lost_canary_is_recorded_by_the_teacher_whose_tokens_the_store_holds_only(extracted: Extracted) -> None:
    canary = next(extracted.folder.glob("canaries/*"))
    before = canary.read_bytes()
    canary.write_bytes(b"")
    assert extracted.repair()["left"] == []
    assert canary.read_bytes() == before
    canary.unlink()
    result = extracted.repair(with_teacher=False)
    assert (result["left"], result["rebuilt"]) == ([], {})
    assert extracted.repair()["rebuilt"] == {f"canaries/{canary.name}": "its teacher"}
    assert canary.read_bytes() == before


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["records", "parquet"])
def test_a_flipped_bit_of_a_ledger_costs_no_forward(
    extracted: Extracted, monkeypatch: pytest.MonkeyPatch, kind: str, place: float, capsys: Capture
) -> None:
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 6)
    reader = FeatureStore.open(extracted.folder).features(extracted.key)
    right = reader.read(np.arange(48)).patch
    assert (reader.group.compact(), reader.views.group.compact()) == (1, 1)
    for group in ("{features}", "{views}"):
        name = f"{group}/ledgers/000000.{kind}"
        extracted.flip(name, int(place * extracted.path(name).stat().st_size))
    result = extracted.repair(with_teacher=False)
    assert result["left"] == []
    assert extracted.verified(capsys) == (0, [])
    fresh = FeatureStore.open(extracted.folder).features(extracted.key)
    np.testing.assert_array_equal(fresh.read(np.arange(48)).patch, right)
    assert (fresh.group.compact(), fresh.views.group.compact()) == (1, 1)
    np.testing.assert_array_equal(FeatureStore.open(extracted.folder).features(extracted.key).read(np.arange(48)).patch, right)


def test_a_lost_file_of_records_costs_its_own_shards_and_keeps_their_objects(
    extracted: Extracted, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 3)
    reader = FeatureStore.open(extracted.folder).features(extracted.key)
    size = reader.stored_bytes()
    assert (reader.group.compact(), reader.views.group.compact()) == (2, 2)
    objects = {name: data for name, data in extracted.contents().items() if "/c." in name}
    extracted.path("{features}/ledgers/000001.records").unlink()
    extracted.path("{views}/ledgers/000000.records").write_bytes(b"")
    assert extracted.repair()["left"] == []
    assert {name: data for name, data in extracted.contents().items() if "/c." in name} == objects
    assert extracted.verified(capsys) == (0, [])
    assert FeatureStore.open(extracted.folder).features(extracted.key).stored_bytes() == size


def test_an_identity_that_nothing_remembers_is_written_by_the_same_extraction(template: Extracted, tmp_path: Path, capsys: Capture) -> None:
    """A seed that nobody would guess, and no kept statistics: the command that made the set makes it whole again."""
    extract = (
        f"extract-features --store {tmp_path}/store --data photos --teacher {template.teacher} --views 2 --seed 987654 "
        "--statistics-batches 2 --workers 0"
    ).split()
    assert main(["index", str(template.images), "--store", f"{tmp_path}/store", "--name", "photos"]) == 0
    assert main(extract) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    for kind in ("views", "features"):
        for damage in ("missing", "empty"):
            (path,) = (tmp_path / "store" / kind).glob("*/identity.json")
            path.unlink() if damage == "missing" else path.write_bytes(b"")
            kept = next((tmp_path / "store/statistics").iterdir())
            kept.unlink()
            capsys.readouterr()
            assert main(["features", "verify", "--store", f"{tmp_path}/store"]) == 1
            assert "run the same `eupe-pipeline extract-features` again that made it" in capsys.readouterr().err
            assert main(extract) == 0
            assert main(["features", "repair", "--store", f"{tmp_path}/store"]) == 0
            assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before
            assert main(["features", "verify", "--store", f"{tmp_path}/store"]) == 0


def test_indexing_the_source_again_puts_a_damaged_index_and_identity_right(extracted: Extracted) -> None:
    before = extracted.contents()
    for name in ("{dataset}/index.parquet", "{dataset}/identity.json"):
        for data in (b"", b"PAR1 half", None):
            extracted.path(name).unlink()
            if data is not None:
                extracted.path(name).write_bytes(data)
            assert main(["index", str(extracted.images), "--store", str(extracted.folder), "--name", "photos"]) == 0
            assert extracted.contents() == before


def test_what_evaluations_keep_is_made_again_as_means(template: Extracted, tmp_path: Path) -> None:
    shutil.copytree(template.folder, tmp_path / "store")
    store, model = FeatureStore.open(tmp_path / "store"), open_model(str(template.teacher))
    made = pooled_features(
        store, store.dataset("photos"), model, device="cpu", crop_fraction=1.0, batch_size=8, on_event=lambda event: None
    )  # fmt: skip
    right, path = made.read(np.arange(made.rows)).patch, tmp_path / f"store/features/{made.key}/patch/c.0.0.0.0"
    before = path.read_bytes()
    data = bytearray(before)
    data[5], data[900] = data[5] ^ 9, data[900] ^ 9
    path.write_bytes(data)
    result = repair_features(RepairOptions(str(tmp_path / "store"), made.key, teacher=TeacherRequest(str(template.teacher))))
    assert (result["repaired"], result["left"]) == ([0], [])
    fresh = FeatureStore.open(tmp_path / "store").features(made.key).read(np.arange(made.rows)).patch
    np.testing.assert_allclose(fresh.astype(np.float32), right.astype(np.float32), rtol=1e-4, atol=1e-5)


def test_one_set_is_repaired_alone_and_the_whole_store_at_once(extracted: Extracted, capsys: Capture) -> None:
    """Two sets of one teacher over the same views: damage of the other is none of the first's."""
    request = (TeacherRequest(str(extracted.teacher)),)
    views = ViewSpec(views_per_image=2, seed=3)
    options = ExtractOptions(str(extracted.folder), "photos", request, views, 4, "fp16", statistics_batches=3, workers=0)
    other = extract_features(options)["features"]["teacher"]
    before = extracted.contents()
    extracted.spoil("{features}/patch/c.1.0.0.0")
    extracted.spoil(f"features/{other}/patch/c.3.0.0.0")
    extracted.path(f"features/{other}/zarr.json").write_bytes(b"")
    extracted.path("{views}/crop/c.0.0").unlink()
    assert extracted.repair()["left"] == []
    assert {name for name, data in before.items() if extracted.contents()[name] != data} == {
        f"features/{other}/patch/c.3.0.0.0",
        f"features/{other}/zarr.json",
    }
    assert main(["features", "verify", "--store", str(extracted.folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: list(one["damaged"]) for key, one in found["features"].items()} == {extracted.key: [], other: ["3"]}
    assert main(["features", "repair", "--store", str(extracted.folder), "--teacher", str(extracted.teacher)]) == 0
    assert extracted.contents() == before


def test_a_repair_whose_worker_is_stopped_has_changed_nothing(extracted: Extracted, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted.spoil("{features}/patch/c.1.0.0.0")
    before = extracted.contents()

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWorker, "_through_teachers", stopped)
    assert main(["features", "repair", extracted.key, "--store", str(extracted.folder), "--teacher", str(extracted.teacher)]) == 2
    assert extracted.contents() == before


def test_an_identity_without_a_teacher_of_ours_is_reported_and_the_rest_is_repaired(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    zarr = next((tmp_path / "store/views").glob("*/zarr.json"))
    before = zarr.read_bytes()
    zarr.write_bytes(b"")
    next((tmp_path / "store/features").glob("fp32@*/patch/c.0.*")).unlink()
    result = repair_features(RepairOptions(str(tmp_path / "store")))
    assert zarr.read_bytes() == before
    assert len(result["left"]) == 1
    assert "describes no teacher that this version knows" in result["left"][0]
