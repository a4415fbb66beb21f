"""Imported weights are a run's folder: a teacher, a start for training with fresh adapters, something to export again."""

import json
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import load_model
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ...teachers.checkpoints.test_official import randomised


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Encoder]:
    encoder = randomised("vit-mini")
    torch.save(to_official(encoder.state_dict(), "vit-mini"), tmp_path / "published.pth")
    return tmp_path / "published.pth", encoder


def test_an_imported_checkpoint_teaches(published: tuple[Path, Encoder], tmp_path: Path) -> None:
    import_weights(published[0], tmp_path / "taken", 32)
    teacher = load_teacher(resolve_teacher(str(tmp_path / "taken")))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = published[1](published[1].preprocessing.apply(pixels))
    torch.testing.assert_close(teacher(pixels).cls_BD, wanted.cls_BD)


def test_training_starts_from_its_backbone_and_keeps_its_own_adapters(published: tuple[Path, Encoder], tmp_path: Path) -> None:
    import_weights(published[0], tmp_path / "taken", 32)
    student = Student(build_encoder({"name": "vit-mini", "layer_scale": 1e-5}), 8, {"t": TargetSpec(6, 6, (1, 1))})
    adapters = {name: tensor.clone() for name, tensor in student.adapters.state_dict().items()}
    load_model(student, tmp_path / "taken", {"t": "abc"})
    assert all(torch.equal(tensor, student.adapters.state_dict()[name]) for name, tensor in adapters.items())
    assert all(torch.equal(tensor, student.encoder.state_dict()[name]) for name, tensor in published[1].state_dict().items())


def test_a_run_without_adapters_that_was_not_imported_is_still_refused(published: tuple[Path, Encoder], tmp_path: Path) -> None:
    import_weights(published[0], tmp_path / "taken", 32)
    (tmp_path / "taken" / "imported.json").unlink()
    student = Student(build_encoder({"name": "vit-mini", "layer_scale": 1e-5}), 8, {"t": TargetSpec(6, 6, (1, 1))})
    with pytest.raises(CacheMismatch, match="adapters"):
        load_model(student, tmp_path / "taken", {"t": "abc"})


def test_import_then_export_gives_the_same_tensors_and_warns_of_the_official_terms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    official = to_official(build_encoder("eupe_vitt16").state_dict(), "eupe_vitt16")
    torch.save(official, tmp_path / "official.pth")
    import_weights(tmp_path / "official.pth", tmp_path / "taken")
    export(ExportOptions(tmp_path / "taken", tmp_path / "out", ("eupe",)))
    (path,) = (tmp_path / "out" / "eupe").glob("*.pth")
    again = torch.load(path, weights_only=True)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], official[name]) for name in official)
    assert "NON-COMMERCIAL" in (tmp_path / "out" / "eupe" / "README.md").read_text()


def test_the_source_is_recorded_by_content_and_what_was_left_out_is_said(published: tuple[Path, Encoder], tmp_path: Path) -> None:
    state = torch.load(published[0], weights_only=True)
    torch.save({**state, "projectors.0.weight": torch.ones(2)}, published[0])
    result = import_weights(published[0], tmp_path / "taken", 32)
    record = json.loads((tmp_path / "taken" / "imported.json").read_text())
    assert record["notes"] == result["notes"] == ["left out: 1 tensors of projection heads (projectors.*)"]
    assert len(record["sha256"]["published.pth"]) == 64


def test_a_missing_source_a_used_folder_and_a_size_off_the_stride_are_refused(published: tuple[Path, Encoder], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        import_weights(tmp_path / "nothing.pth", tmp_path / "taken")
    with pytest.raises(BadInput, match="is not empty"):
        import_weights(published[0], tmp_path)
    with pytest.raises(BadInput, match="not a multiple"):
        import_weights(published[0], tmp_path / "taken", 33)
