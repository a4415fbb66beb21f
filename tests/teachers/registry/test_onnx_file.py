"""FILE.onnx as a teacher: the tokens of the model that it was exported from, what is declared of it, its identity, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest, file_sha256
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import absolute_name, load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor
from torch.nn import functional

from ..conftest import make_run
from ..onnx_files import declare, exported_graph, small_graph


def pixels(count: int = 2, size_px: int = 32) -> Tensor:
    return torch.from_numpy(canary_images(count, size_px))


def loaded(name: str, **options: Any) -> Teacher:
    return load_teacher(resolve_teacher(name, **options))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").write_bytes(exported_graph())
    declare(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_graph(tmp_path / "small.onnx")


SMALL: dict[str, Any] = {"input": "image", "patch_output": "grid", "cls": "none", "cls_output": None}


def expected_grid(path: Path, count: int = 2, size_px: int = 32) -> Tensor:
    """The convolution of `small_graph` over normalised pixels, by torch."""
    stored = next(one for one in onnx.load(path).graph.initializer if one.name == "weight")
    weight = torch.from_numpy(onnx.numpy_helper.to_array(stored).copy())
    x_BCHW = resolve_teacher(str(path)).preprocessing.apply(pixels(count, size_px))
    return functional.conv2d(x_BCHW, weight.float(), stride=8).permute(0, 2, 3, 1)


class TestOfAnExport:
    def test_its_tokens_are_those_of_the_model_that_it_was_exported_from(self, exported: Path, tmp_path: Path) -> None:
        run = loaded(str(make_run(tmp_path / "run", "vit-mini", 32)))
        for size_px in (32, 48):
            found, wanted = (one.at_size(size_px)(pixels(3, size_px)) for one in (loaded(str(exported)), run))
            assert found.cls_BD is not None
            assert wanted.cls_BD is not None
            torch.testing.assert_close(found.cls_BD, wanted.cls_BD, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.patch_BHWD, wanted.patch_BHWD, rtol=0, atol=1e-4)

    def test_the_record_of_the_export_declares_it(self, exported: Path, tmp_path: Path) -> None:
        exported.with_suffix(".toml").unlink()
        run = resolve_teacher(str(make_run(tmp_path / "run", "vit-mini", 32)))
        record = {
            "format": "onnx", "student": "my-student", "architecture": run.architecture, "preprocessing": run.preprocessing.identity(),
            "files": ["net.onnx"],
        }  # fmt: skip
        (tmp_path / "export.json").write_text(json.dumps(record))
        spec = resolve_teacher(str(exported))
        assert (spec.name, spec.cls, spec.grid, spec.preprocessing) == ("my-student", "class token", (4, 4), run.preprocessing)
        (tmp_path / "export.json").write_text(json.dumps({**record, "files": ["other.onnx"]}))
        with pytest.raises(BadInput, match=r"nothing says what the outputs of net\.onnx are; write .*net\.toml with name = "):
            resolve_teacher(str(exported))

    def test_compiling_leaves_it_to_onnxruntime(self, exported: Path) -> None:
        teacher = loaded(str(exported))
        plain = teacher(pixels(3))
        teacher.encoder.compile = lambda **options: None  # type: ignore[method-assign]  # torch's compiler takes minutes here
        teacher.compile_encoder(2)
        torch.testing.assert_close(teacher(pixels(3)).patch_BHWD, plain.patch_BHWD, rtol=0, atol=1e-5)


class TestIdentity:
    def test_it_says_the_graph_and_what_is_declared_and_no_path(self, exported: Path, tmp_path: Path) -> None:
        spec = resolve_teacher(str(exported))
        assert spec.identity()["architecture"] == {
            "name": "onnx-file", "cls": "class token", "width": 48, "stride_px": 8, "input": "pixels", "patch_output": "patch",
            "cls_output": "cls", "layout": "grid", "prefix_tokens": 0,
        }  # fmt: skip
        assert spec.weights_sha256 == file_sha256(exported)
        assert (spec.name, spec.grid, spec.cls_dim, spec.patch_dim, spec.precision) == ("my-graph", (4, 4), 48, 48, "fp32")
        assert str(tmp_path) not in str(spec.identity())
        moved = exported.rename(tmp_path / "moved.onnx")
        exported.with_suffix(".toml").rename(moved.with_suffix(".toml"))
        assert resolve_teacher(str(moved)).identity() == spec.identity()

    @pytest.mark.parametrize("change", [
        {"mean": [0.5, 0.5, 0.5]}, {"cls": "none", "cls_output": None}, {"channel_order": "bgr"}, {"size_px": 40},
    ])  # fmt: skip
    def test_what_is_declared_otherwise_is_another_teacher(self, exported: Path, change: dict[str, Any]) -> None:
        before = digest(resolve_teacher(str(exported)).identity())
        assert digest(resolve_teacher(declare(exported, **change)).identity()) != before

    def test_options_are_those_of_any_teacher(self, exported: Path) -> None:
        spec = resolve_teacher(declare(exported, mean=[0, 0, 0], std=[1, 1, 1]), size_px=48, precision="bf16", constants="imagenet")
        assert (spec.grid, spec.precision, spec.preprocessing.mean[0]) == ((6, 6), "fp32", 0.485)  # it computes in its own types
        with pytest.raises(BadInput, match="33 px is not a multiple of its stride of 8 px"):
            resolve_teacher(str(exported), size_px=33)

    def test_weights_beside_the_graph_are_part_of_it(self, small: Path, tmp_path: Path) -> None:
        whole = loaded(declare(small, **SMALL))
        apart = tmp_path / "apart" / "net.onnx"
        apart.parent.mkdir()
        onnx.save_model(onnx.load(small), apart, save_as_external_data=True, location="net.onnx.data", size_threshold=1024)
        spec = resolve_teacher(declare(apart, **SMALL))
        assert torch.equal(load_teacher(spec)(pixels()).patch_BHWD, whole(pixels()).patch_BHWD)
        data = apart.with_suffix(".onnx.data")
        data.write_bytes(data.read_bytes()[:64] + b"\x00\x00\x80\x3f" + data.read_bytes()[68:])
        assert resolve_teacher(str(apart)).weights_sha256 != spec.weights_sha256
        with pytest.raises(BadInput, match="or its weights changed since the teacher my-graph was resolved"):
            load_teacher(spec)
        data.unlink()
        with pytest.raises(BadInput, match=r"keeps weights in net\.onnx\.data, which is not beside it"):
            resolve_teacher(str(apart))

    def test_weights_outside_of_its_folder_are_refused(self, small: Path, tmp_path: Path) -> None:
        model = onnx.load(small)
        tensor = model.graph.initializer[0]
        onnx.external_data_helper.set_external_data(tensor, location="../secret.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BadInput, match="outside of its folder"):
            resolve_teacher(declare(tmp_path / "bad.onnx", **SMALL))


class TestGraphs:
    @pytest.mark.parametrize("batch", ["b", 1, 2, 3])
    def test_a_graph_of_any_batch_or_of_one_gives_the_same_tokens(self, tmp_path: Path, batch: int | str) -> None:
        path = small_graph(tmp_path / "net.onnx", batch)
        teacher = loaded(declare(path, **SMALL))
        torch.testing.assert_close(teacher(pixels(5)).patch_BHWD, expected_grid(path, 5), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("layout", "prefix"), [("grid", None), ("map", None), ("sequence", 1)])
    def test_each_layout_is_the_same_grid(self, small: Path, layout: str, prefix: int | None) -> None:
        name = declare(small, **{**SMALL, "patch_output": layout, "layout": layout, "prefix_tokens": prefix})
        torch.testing.assert_close(loaded(name)(pixels()).patch_BHWD, expected_grid(small), rtol=0, atol=1e-5)

    def test_the_class_token_is_an_output_the_first_token_or_a_mean(self, small: Path) -> None:
        sequence = {**SMALL, "patch_output": "sequence", "layout": "sequence", "prefix_tokens": 1}
        declare(small, **SMALL)
        expected = expected_grid(small)
        mean = expected.mean(dim=(1, 2))
        wanted = {"attention pool": expected.amax(dim=(1, 2)), "class token": mean, "mean of patch tokens": mean}
        declared = {
            "attention pool": {**SMALL, "cls_output": "largest"}, "class token": sequence, "mean of patch tokens": SMALL,
        }  # fmt: skip
        for cls, token in wanted.items():
            found = loaded(declare(small, **{**declared[cls], "cls": cls}))(pixels()).cls_BD
            assert found is not None
            torch.testing.assert_close(found, token, rtol=0, atol=1e-5)

    def test_a_graph_of_fixed_sides_takes_those_alone(self, tmp_path: Path) -> None:
        path = small_graph(tmp_path / "net.onnx", "b", 32)
        assert loaded(declare(path, **SMALL))(pixels()).patch_BHWD.shape == (2, 4, 4, 5)
        with pytest.raises(BadInput, match=r"takes pixels of 32×32 px alone, got 40×40"):
            resolve_teacher(str(path), size_px=40)
        spec = resolve_teacher(str(path))
        assert spec.architecture["one_size_px"] == 32
        assert spec.at_size(32) == spec
        with pytest.raises(BadInput, match=r"my-graph takes pixels of 32×32 px alone, got 64"):
            spec.at_size(64)

    def test_a_graph_of_half_precision_gives_fp32_tokens(self, tmp_path: Path) -> None:
        path = small_graph(tmp_path / "net.onnx", half=True)
        tokens = loaded(declare(path, **SMALL))(pixels()).patch_BHWD
        assert tokens.dtype == torch.float32
        torch.testing.assert_close(tokens, expected_grid(path), rtol=0, atol=0.05)

    def test_a_worker_makes_it_from_the_spec(self, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        here = loaded(str(exported))(pixels())
        monkeypatch.chdir(exported.parent)
        assert absolute_name("net.onnx") == str(exported)
        spec = resolve_teacher("net.onnx")
        exported.with_suffix(".toml").unlink()  # what it says is in the spec
        assert torch.equal(load_teacher(pickle.loads(pickle.dumps(spec)))(pixels()).patch_BHWD, here.patch_BHWD)

    def test_it_can_be_evaluated(self, exported: Path) -> None:
        model = open_model(str(exported))
        assert torch.equal(model.load("cpu")(pixels()).patch_BHWD, loaded(str(exported))(pixels()).patch_BHWD)

    def test_a_device_that_onnxruntime_has_not_is_an_error_and_not_the_processor(self, exported: Path) -> None:
        graph: Any = loaded(str(exported)).encoder.backbone
        with pytest.raises(BadInput, match=r"has no CUDAExecutionProvider here.*onnxruntime-gpu.*--teacher-device NAME=cpu"):
            graph._session("cuda")


class TestRefused:
    @pytest.mark.parametrize(("change", "why"), [
        ({"name": None}, r"net\.toml does not say name; an example: name = "),
        ({"patch_output": None}, "does not say patch_output"),
        ({"patch_output": "patches"}, r"no output 'patches', which patch_output says; it has cls, patch"),
        ({"cls_output": "token"}, r"no output 'token', which cls_output says; it has cls, patch"),
        ({"cls_output": None}, r'cls is "class token", so cls_output must name'),
        ({"cls": "none"}, r'cls is "none", and cls_output names one'),
        ({"cls": "pooled"}, r"cls is 'pooled'; kinds: class token"),
        ({"input": "image"}, r"has no input 'image'; it has pixels"),
        ({"patch_output": "cls"}, r"gives a tensor of shape 1×48 .*expected patch tokens"),
        ({"cls_output": "patch"}, r"expected a class token"),
        ({"layout": "map"}, r"expected patch tokens"),
        ({"layout": "sequence"}, r"a sequence of 0 prefix tokens and 4×4 patch tokens is B×16×D"),
        ({"layout": "columns"}, r"unknown layout 'columns'.*grid"),
        ({"prefix_tokens": 1}, r"prefix_tokens counts tokens of a sequence, got 1 in a grid"),
        ({"stride_px": 16}, r"expected patch tokens .* of shape 1×2×2×D"),
        ({"size_px": 30}, r"30 px is not a multiple of its stride of 8 px"),
        ({"size_px": "32"}, r"size_px is a count of pixels, got '32'"),
        ({"std": [0, 1, 1]}, r"std must be positive"),
        ({"mean": "0"}, r"mean is three numbers"),
        ({"input": 3}, r"input is a text, got 3"),
        ({"paich_output": "patch"}, r"unknown key in .*net\.toml 'paich_output'; did you mean 'patch_output'"),
        ({"name": "dinov3-h+"}, r"calls itself 'dinov3-h\+', which is a known teacher's name"),
    ])  # fmt: skip
    def test_each_mistake_in_the_declaration_is_said(self, exported: Path, change: dict[str, Any], why: str) -> None:
        with pytest.raises(BadInput, match=why):
            resolve_teacher(declare(exported, **change))

    def test_files_that_are_no_graphs_are_refused(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"absent\.onnx cannot be read: No such file"):
            resolve_teacher(str(tmp_path / "absent.onnx"))
        exported.write_bytes(b"nothing of a graph")
        with pytest.raises(BadInput, match=r"net\.onnx is not an ONNX file"):
            resolve_teacher(str(exported))
        exported.with_suffix(".toml").write_text("name = ")
        small_graph(exported)
        with pytest.raises(BadInput, match=r"net\.toml is not a TOML file"):
            resolve_teacher(str(exported))

    def test_weights_of_its_own_are_refused(self, exported: Path) -> None:
        with pytest.raises(BadInput, match="leave --weights out"):
            resolve_teacher(str(exported), weights=exported)

    def test_a_graph_with_another_input_is_refused(self, small: Path) -> None:
        model = onnx.load(small)
        model.graph.input.append(onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1]))
        onnx.save(model, small)
        with pytest.raises(BadInput, match=r"has 2 inputs \(image, ids\)"):
            resolve_teacher(declare(small, **SMALL))

    @pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
    def test_a_missing_library_names_the_extra(self, exported: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
        import importlib

        real = importlib.import_module

        def without(name: str, package: str | None = None) -> Any:
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", without)
        with pytest.raises(BadInput, match=rf"needs {missing}; run: pip install 'eupe-pipeline\[export\]'"):
            resolve_teacher(str(exported))
