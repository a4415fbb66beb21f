"""Exports of a run: what each folder holds, that its example runs, that its card passes the terms on."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.formats import FORMATS
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.student.export.lineage import hub_name, open_trained
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.probes.evaluation_records import write_record
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch is not installed: pip install -e '.[executorch]'"
)


def make_run(folder: Path, architecture: Any, size_px: int, teacher: str = "dinov3-h+", sha256: str = "0" * 64) -> Path:
    """A finished run of a random student, taught by one teacher."""
    torch.manual_seed(1)
    student = Student(build_encoder(architecture), 8, {teacher: TargetSpec(6, 6, (1, 1))})
    save_model(student, folder / "model", size_px=size_px, targets={teacher: "abc"})
    targets = {teacher: {"features": f"{teacher}@123", "identity": {"teacher": {"weights_sha256": sha256}, "views": "feed" * 16}}}
    (folder / "identities.json").write_text(json.dumps({"targets": targets}))
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"seed": 7}, "origins": {"seed": "ours"}}))
    (folder / "summary.json").write_text(json.dumps({"loss": 0.25}))
    return folder


@pytest.fixture(scope="module")
def vitt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("vitt"), {"name": "eupe_vitt16", "layer_scale": 1.0}, 64)


@pytest.fixture(scope="module")
def mini_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("mini"), {"name": "vit-mini", "depth": 1, "layer_scale": 1.0}, 32)


@pytest.fixture(scope="module")
def exported(vitt_run: Path, mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a format; the small shape where the format takes any."""
    out = tmp_path_factory.mktemp("out")
    export(ExportOptions(vitt_run, out / "vitt", ("eupe",)))
    export(ExportOptions(mini_run, out / "mini", ("timm", "transformers", "onnx")))
    return {"eupe": out / "vitt" / "eupe", **{form: out / "mini" / form for form in ("timm", "transformers", "onnx")}}


@pytest.mark.parametrize("form", ["eupe", "timm", "transformers", "onnx"])
class TestFolder:
    """What every export folder holds."""

    def test_its_checksums_cover_every_file_and_are_right(self, exported: dict[str, Path], form: str) -> None:
        lines = {line[66:]: line[:64] for line in (exported[form] / "SHA256SUMS").read_text().splitlines()}
        there = {path.name for path in exported[form].iterdir()} - {"SHA256SUMS"}
        assert set(lines) == there
        assert all(file_sha256(exported[form] / name) == digest for name, digest in lines.items())

    def test_its_example_has_about_ten_lines_and_never_imports_this_package(self, exported: dict[str, Path], form: str) -> None:
        lines = (exported[form] / "usage.py").read_text().splitlines()
        assert 9 <= len(lines) <= 11
        assert not [line for line in lines if "eupe_pipeline" in line]

    def test_its_card_passes_on_terms_recipe_and_identities(self, exported: dict[str, Path], form: str) -> None:
        card = (exported[form] / "README.md").read_text()
        assert "DINOv3 License" in card
        assert '"seed": 7' in card
        assert "feed" * 16 in card
        assert "Nobody has evaluated this run yet" in card
        assert (exported[form] / "usage.py").read_text() in card

    def test_its_record_names_the_student_and_its_weights(self, exported: dict[str, Path], form: str) -> None:
        record = json.loads((exported[form] / "export.json").read_text())
        assert record["format"] == form
        assert len(record["weights_sha256"]) == 64
        assert all((exported[form] / name).is_file() for name in record["files"])


def test_the_official_files_name_holds_its_own_hash_as_torch_hub_expects(exported: dict[str, Path]) -> None:
    (path,) = exported["eupe"].glob("*.pth")
    name, digits = path.stem.split("-")
    assert name == "eupe_vitt16"
    assert file_sha256(path).startswith(digits)


@pytest.mark.parametrize("form", ["eupe", "timm", "transformers"])
def test_import_of_an_export_gives_bitwise_the_runs_tensors(
    exported: dict[str, Path], form: str, vitt_run: Path, mini_run: Path, tmp_path: Path
) -> None:
    source = next(exported[form].glob("*.pth")) if form == "eupe" else exported[form]
    import_weights(source, tmp_path / "taken")
    ours = open_trained(vitt_run if form == "eupe" else mini_run).encoder.state_dict()
    found = open_trained(tmp_path / "taken").encoder.state_dict()
    assert ours.keys() == found.keys()
    assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_evaluations_of_the_run_stand_in_the_card_without_being_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32)
    write_record(run, "segmentation", {"data": "ade"}, {"miou": 41.25, "by_step": {"1": "on the way"}}, 2.0)
    export(ExportOptions(run, tmp_path / "out", ("timm",)))
    card = (tmp_path / "out" / "timm" / "README.md").read_text()
    assert '"miou": 41.25' in card
    assert '"data": "ade"' in card
    assert "on the way" not in card


def test_an_evaluation_given_to_the_export_stands_in_the_card(mini_run: Path, tmp_path: Path) -> None:
    (tmp_path / "knn.json").write_text(json.dumps({"cls": {"paper": 61.5}}))
    export(ExportOptions(mini_run, tmp_path / "out", ("timm",), evaluations=(tmp_path / "knn.json",)))
    assert "61.5" in (tmp_path / "out" / "timm" / "README.md").read_text()
    (tmp_path / "bad.json").write_text("not JSON")
    with pytest.raises(BadInput, match="not the JSON result"):
        export(ExportOptions(mini_run, tmp_path / "out2", ("timm",), evaluations=(tmp_path / "bad.json",)))


def test_through_the_proxys_run_its_teachers_terms_are_passed_on(mini_run: Path, tmp_path: Path) -> None:
    proxy = make_run(tmp_path / "proxy", "vit-mini", 32, teacher="clip-l")
    weights = file_sha256(proxy / "model" / "backbone.safetensors")
    student = make_run(tmp_path / "student", "vit-mini", 32, teacher="proxy", sha256=weights)
    export(ExportOptions(student, tmp_path / "alone", ("timm",)))
    assert "terms unknown to us" in (tmp_path / "alone" / "timm" / "README.md").read_text()
    export(ExportOptions(student, tmp_path / "out", ("timm",), proxy=proxy))
    assert "clip-l (through proxy): MIT" in (tmp_path / "out" / "timm" / "README.md").read_text()
    with pytest.raises(CacheMismatch, match="is not the proxy"):
        export(ExportOptions(mini_run, tmp_path / "other", ("timm",), proxy=proxy))


def test_a_shape_that_the_official_hub_has_not_is_refused_and_leaves_nothing(mini_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="six shapes"):
        export(ExportOptions(mini_run, tmp_path / "out", ("eupe",)))
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match=f"Known: {', '.join(sorted(FORMATS))}"):
        ExportOptions(Path("run"), Path("out"), ("coremls",))
    with pytest.raises(BadInput, match="needs a format"):
        ExportOptions(Path("run"), Path("out"), ())
    with pytest.raises(BadInput, match="go together"):
        ExportOptions(Path("run"), Path("out"), ("timm",), adapters=True)


def test_only_training_values_may_differ_from_an_official_student() -> None:
    assert hub_name(canonical({"name": "eupe_convnext_base", "layer_scale": 1.0})) == "eupe_convnext_base"
    assert hub_name(canonical({"name": "eupe_vitt16", "rope_rescale": 1.0})) == "eupe_vitt16"
    assert hub_name(canonical({"name": "eupe_vitt16", "registers": 0})) is None
    assert hub_name(canonical({"name": "eupe_vitt16", "layer_scale": None})) is None


@needs_executorch
@pytest.mark.filterwarnings("ignore")
def test_executorch_programs_run_and_the_int8_one_says_what_it_costs(mini_run: Path, tmp_path: Path) -> None:
    found = export(ExportOptions(mini_run, tmp_path, ("executorch",)))["written"]["executorch"]
    assert found["student-fp32.pte"]["max_abs_difference"] <= 1e-4
    assert 0.99 < found["student-int8.pte"]["least_cls_cosine"] < 1
    sizes = [(tmp_path / "executorch" / name).stat().st_size for name in found["files"]]
    assert sizes[1] < 0.75 * sizes[0]
