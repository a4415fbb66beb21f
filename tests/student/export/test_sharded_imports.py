"""Checkpoints in several files are taken in wherever one file is: official, timm and transformers layouts, and evaluated exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.checkpoints.sharded import weight_files, weights_sha256
from eupe_pipeline.teachers.checkpoints.timm_folder import write_timm
from eupe_pipeline.teachers.checkpoints.timm_student_folder import write_timm_student
from eupe_pipeline.teachers.checkpoints.transformers_folder import write_transformers
from eupe_pipeline.teachers.checkpoints.weights import read_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.registry.resolve import BACKBONE_FILE

from ...teachers.checkpoints.test_official import randomised
from ...teachers.checkpoints.test_sharded import split

PREP = Preprocessing(64)


def in_parts(folder: Path) -> Path:
    """Split the weights of a folder, and take the one file away."""
    whole = folder / "model.safetensors"
    index = split(read_weights(whole), folder)
    whole.unlink()
    return index


@pytest.mark.parametrize("layout", ["official index", "official folder", "timm", "transformers"])
def test_a_student_in_several_files_is_the_student_in_one(tmp_path: Path, layout: str) -> None:
    encoder = randomised("vit-mini")
    folder = tmp_path / "published"
    folder.mkdir()
    if layout.startswith("official"):
        source = split(to_official(encoder.state_dict(), encoder.architecture), folder)
        source = source if layout.endswith("index") else folder
        (folder / "config.json").unlink(missing_ok=True)
    else:
        {"timm": write_timm, "transformers": write_transformers}[layout](encoder.state_dict(), encoder.architecture, PREP, folder)
        in_parts(folder)
        source = folder
    told = import_weights(source, tmp_path / "run", size_px=64)
    found = read_weights(tmp_path / "run" / BACKBONE_FILE)
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.state_dict().items())
    assert {name for name in told["sha256"] if name.endswith(".safetensors")} == {path.name for path in folder.glob("*.safetensors")}
    assert told["sha256"]["model.safetensors.index.json"] == file_sha256(folder / "model.safetensors.index.json")
    assert json.loads((tmp_path / "run" / "imported.json").read_text())["sha256"] == told["sha256"]


def test_a_timm_backbone_in_several_files_is_taken_in_and_its_identity_covers_every_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder("timm:test_resnet.r160_in1k")
    folder = tmp_path / "student"
    folder.mkdir()
    write_timm_student(encoder.state_dict(), encoder.architecture, Preprocessing(160), folder)
    index = in_parts(folder)
    import_weights(folder, tmp_path / "run")
    found = read_weights(tmp_path / "run" / BACKBONE_FILE)
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.state_dict().items())
    assert open_model(str(folder)).spec.weights_sha256 == weights_sha256(index)


@pytest.mark.parametrize("layout", ["official", "timm", "transformers"])
def test_parts_that_do_not_fit_their_index_are_refused(tmp_path: Path, layout: str) -> None:
    encoder = randomised("vit-mini")
    if layout == "official":
        source = split(to_official(encoder.state_dict(), encoder.architecture), tmp_path)
    else:
        {"timm": write_timm, "transformers": write_transformers}[layout](encoder.state_dict(), encoder.architecture, PREP, tmp_path)
        in_parts(tmp_path)
        source = tmp_path
    index = tmp_path / "model.safetensors.index.json"
    first, second, *_ = weight_files(index)
    kept = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(BadInput, match="disagree"):
        import_weights(source, tmp_path / "run")
    second.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(BadInput, match="not a safetensors file"):
        import_weights(source, tmp_path / "run")
    second.unlink()
    with pytest.raises(BadInput, match="are not beside it"):
        import_weights(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
