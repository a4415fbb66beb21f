"""`--target edge`: a graph of one shape from operators that devices have gives the student's tokens in onnxruntime and in OpenVINO."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.operators import count_operators, not_allowed
from eupe_pipeline.student.export import graphs
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.graphs import HALF_LIMIT, SCALED_LIMIT, max_difference
from eupe_pipeline.student.export.latency import LatencyOptions, latency
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import Runner, eager_runner, onnx_runner, openvino_runner
from eupe_pipeline.teachers.encoders.tokens import Tokens
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from .test_export import make_run
from .test_timm_students import OTHERS, made
from .test_usage_examples import need_the_students_tokens, run_example

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed: pip install -e '.[openvino]'")
OPENED = [pytest.param(onnx_runner, id="onnxruntime"), pytest.param(openvino_runner, id="openvino", marks=needs_openvino)]
HERE: list[Any] = [onnx_runner, openvino_runner] if HAS_OPENVINO else [onnx_runner]
TWO, HALF = "two/onnx-edge", "one/onnx-edge-fp16"
PLAIN = {"name": "vit-mini", "registers": 0, "layer_scale": None, "qkv_bias": False, "patch_px": 14, "mlp": "swiglu", "mlp_hidden": 64}


def exported(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = export(ExportOptions(run, out, ("onnx",), target="edge", **options))["written"]["onnx"]
    return found


def difference_by_scale(run: Runner, trained_run: Path, shape: tuple[int, ...]) -> float:
    """The largest difference on noise, over the root mean square of the student's tokens."""
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    found, wanted = run(pixels), eager_runner(open_trained(trained_run).encoder)(pixels)
    return max(
        ((a - b).abs().max() / b.square().mean().sqrt()).item()
        for a, b in zip(found, wanted, strict=True)
        if a is not None and b is not None
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, folder) with graphs of a small ViT: `two/onnx-edge` of two pictures at another size than the run's; open and fp16 in `one`."""
    folder = tmp_path_factory.mktemp("edge-vit")
    run = make_run(folder / "run", {"name": "vit-mini", "layer_scale": 1.0}, 32)
    exported(run, folder / "two", size_px=48, batch=2)
    export(ExportOptions(run, folder / "one", ("onnx",)))
    exported(run, folder / "one", precision="fp16")
    return run, folder


@pytest.mark.parametrize("opened", OPENED)
def test_its_tokens_are_the_students_at_its_size_and_batch(vit: tuple[Path, Path], opened: Any) -> None:
    run, out = vit
    assert difference_by_scale(opened(out / TWO / "student.onnx"), run, (2, 3, 48, 48)) <= 1e-4
    assert 1e-5 < difference_by_scale(opened(out / HALF / "student.onnx"), run, (1, 3, 32, 32)) <= HALF_LIMIT


@pytest.mark.parametrize("opened", OPENED)
def test_another_shape_is_refused_with_both(vit: tuple[Path, Path], opened: Any) -> None:
    run = opened(vit[1] / TWO / "student.onnx")
    with pytest.raises(BadInput, match=r"takes pixels of 2×3×48×48 alone, got 1×3×48×48"):
        run(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("folder", [TWO, HALF])
def test_the_file_is_of_2023_and_has_attention_in_plain_operators(vit: tuple[Path, Path], folder: str) -> None:
    model = onnx.load(vit[1] / folder / "student.onnx")
    counts = count_operators(model)
    assert (model.ir_version, [(one.domain, one.version) for one in model.opset_import]) == (8, [("", 18)])
    assert not_allowed(counts) == []
    assert counts["Softmax"] == 2
    assert {"Attention", "Range", "Sin", "Cos", "If", "Shape", "Loop"}.isdisjoint(counts)
    shapes = [[side.dim_value for side in one.type.tensor_type.shape.dim] for one in (*model.graph.input, *model.graph.output)]
    batch, side, grid = (2, 48, 6) if folder == TWO else (1, 32, 4)
    assert shapes == [[batch, 3, side, side], [batch, 48], [batch, grid, grid, 48]]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in model.SerializeToString()


def test_record_and_card_say_what_it_was_made_for(vit: tuple[Path, Path]) -> None:
    record = json.loads((vit[1] / TWO / "export.json").read_text())
    facts = record["facts"]
    assert (record["format"], record["target"], record["precision"], record["batch"]) == ("onnx", "edge", "fp32", 2)
    assert (facts["input"], facts["opset"], facts["limit of the difference"]) == ("2x3x48x48", 18, SCALED_LIMIT)
    assert set(facts["difference by scale"]) == {"onnxruntime", "onnxruntime, not optimised"}
    assert all(0 < value <= SCALED_LIMIT for value in facts["difference by scale"].values())
    half = json.loads((vit[1] / HALF / "export.json").read_text())
    assert (half["precision"], half["facts"]["limit of the difference"]) == ("fp16", HALF_LIMIT)
    assert 1 < half["facts"]["largest value"] < 65_504
    card = (vit[1] / HALF / "README.md").read_text()
    assert "an ONNX graph of one shape for edge devices, in fp16" in card
    assert '| precision | "fp16" |' in card


def test_the_fp16_file_holds_its_weights_in_fp16(vit: tuple[Path, Path]) -> None:
    weights = onnx.load(vit[1] / HALF / "student.onnx").graph.initializer
    sizes = {kind: sum(len(one.raw_data) for one in weights if one.data_type == kind) for kind in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    student = sum(value.numel() for value in open_trained(vit[0]).encoder.state_dict().values())
    assert sizes[TensorProto.FLOAT16] > 1.9 * student
    assert sizes[TensorProto.FLOAT] < 0.1 * student * 2


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_example_of_an_fp16_graph_computes_the_students_tokens(vit: tuple[Path, Path]) -> None:
    need_the_students_tokens(vit[0], vit[1] / HALF, atol=0.02)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_a_graph_of_two_pictures_runs(vit: tuple[Path, Path]) -> None:
    found, printed = run_example(vit[1] / TWO)
    assert printed == "(2, 48) (2, 6, 6, 48)"
    assert torch.equal(found.patch_BHWD[0], found.patch_BHWD[1])


def test_graphs_of_a_student_lie_side_by_side_and_each_is_timed(vit: tuple[Path, Path]) -> None:
    one, two = vit[1] / "one", vit[1] / "two"
    assert sorted(path.name for path in one.iterdir() if path.is_dir()) == ["onnx", "onnx-edge-fp16"]
    assert json.loads((one / "onnx" / "export.json").read_text())["target"] == "open"
    names = ("onnxruntime", "onnxruntime edge fp16", *(["openvino edge fp16"] if HAS_OPENVINO else []))
    assert tuple(latency(LatencyOptions(one, warmup=0, calls=1, runtimes=names))["runtimes"]) == names
    with pytest.raises(BadInput, match="2×3×48×48 alone"):
        latency(LatencyOptions(two, warmup=0, calls=1, runtimes=("onnxruntime edge",)))


@pytest.mark.parametrize("architecture", [
    pytest.param({"name": "convnext-mini", "layer_scale": 1e-6}, id="convnext", marks=pytest.mark.long),
    pytest.param(PLAIN, id="vit without", marks=pytest.mark.long),
])  # fmt: skip
def test_a_convnext_with_tiny_scales_and_a_vit_without_registers_and_scales_go_out_in_both_precisions(
    architecture: dict[str, Any], tmp_path: Path
) -> None:
    side = 64 if architecture["name"] == "convnext-mini" else 42
    run = make_run(tmp_path / "run", architecture, side)
    for precision, folder, limit in (("fp32", "onnx-edge", SCALED_LIMIT), ("fp16", "onnx-edge-fp16", HALF_LIMIT)):
        exported(run, tmp_path / "out", precision=precision)
        for opened in HERE:
            assert difference_by_scale(opened(tmp_path / "out" / folder / "student.onnx"), run, (1, 3, side, side)) <= limit


@pytest.mark.long
def test_the_best_weights_of_a_run_are_those_that_are_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"name": "vit-mini", "depth": 1}, 32)
    best = make_run(run / "best", {"name": "vit-mini", "depth": 1}, 32)
    for name in ("identities.json", "recipe.json", "summary.json"):
        (best / name).unlink()
    weights = best / "model" / "backbone.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights)
    exported(best, tmp_path / "out")
    opened = onnx_runner(tmp_path / "out" / "onnx-edge" / "student.onnx")
    assert difference_by_scale(opened, best, (1, 3, 32, 32)) <= 1e-4
    assert difference_by_scale(opened, run, (1, 3, 32, 32)) > 1e-2


def test_a_graph_that_does_not_agree_is_refused_with_figures_and_not_written(
    vit: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slightly_off(path: Path, threads: int = 1, *, optimised: bool = True) -> Runner:
        run = onnx_runner(path, threads, optimised=optimised)

        def shifted(pixels: torch.Tensor) -> Tokens:
            cls, patch = run(pixels)
            return Tokens(cls, patch + 3e-4)

        return shifted

    monkeypatch.setattr(graphs, "onnx_runner", slightly_off)
    with pytest.raises(BadInput, match=r"differ by up to 0\.0003 of the tokens' root mean square, at most 0\.0001"):
        exported(vit[0], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_tokens_that_are_no_numbers_are_refused(vit: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere(path: Path, threads: int = 1, *, optimised: bool = True) -> Runner:
        return lambda pixels: Tokens(torch.full((1, 48), torch.nan), torch.zeros(1, 4, 4, 48))

    monkeypatch.setattr(graphs, "onnx_runner", nowhere)
    with pytest.raises(BadInput, match="differ by up to inf"):
        exported(vit[0], tmp_path / "out", precision="fp16")


def test_a_student_whose_values_fp16_cannot_hold_is_refused_in_fp16_alone(tmp_path: Path) -> None:
    """The norm behind the first product makes all of it small again: onnxruntime, which computes it in fp32, would not notice."""
    run = make_run(tmp_path / "run", {"name": "vit-mini", "depth": 1}, 32)
    weights = run / "model" / "backbone.safetensors"
    tensors = load_file(weights)
    scaled = {name: value * 3e6 if name.startswith("backbone.patch_embed") else value for name, value in tensors.items()}
    save_file(scaled, weights)
    exported(run, tmp_path / "out")
    with pytest.raises(BadInput, match=r"values of this student reach .*e\+\d\d \(in aten.*fp16 ends at 65504; export in fp32"):
        exported(run, tmp_path / "out", precision="fp16")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["onnx-edge"]


def test_operators_that_devices_may_not_have_are_refused_by_name(
    vit: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("eupe_pipeline.student.edge.operators.ALLOWED", frozenset({"MatMul", "Add", "Reshape", "Softmax"}))
    with pytest.raises(BadInput, match=r"edge runtimes may not have: .*Conv, .*LayerNormalization.*without --target edge"):
        exported(vit[0], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_size_that_the_student_has_no_tokens_at_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "timm:mixer_s32_224", 224)
    with pytest.raises(BadInput, match=r"cannot be traced at 1×3×64×64: .*choose another --size"):
        exported(run, tmp_path / "out", size_px=64)


@pytest.mark.parametrize(("formats", "options", "why"), [
    (("timm",), {"target": "edge"}, "--target is of the formats onnx.*of timm none takes it"),
    (("onnx",), {"precision": "fp16"}, "with --target edge it is written for precision fp16"),
    (("timm", "onnx"), {"batch": 4}, "with --target edge it is written for batch 4"),
    (("onnx",), {"target": "edge", "batch": 0}, "at least 1"),
    (("onnx",), {"target": "edgy"}, "did you mean 'edge'"),
])  # fmt: skip
def test_choices_that_no_format_takes_are_refused_before_anything_is_done(
    formats: tuple[str, ...], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        ExportOptions(Path("run"), Path("out"), formats, **options)


@pytest.mark.long
def test_other_formats_of_the_same_call_are_written_as_ever(vit: tuple[Path, Path], tmp_path: Path) -> None:
    written = export(ExportOptions(vit[0], tmp_path, ("timm", "onnx"), target="edge"))["written"]
    assert [Path(one["folder"]).name for one in written.values()] == ["timm", "onnx-edge"]


QUICK = [("timm:resnet10t", 64)]
SLOW = [("timm:mobilenetv4_conv_small_035", 64), *(one for one in OTHERS if one not in QUICK)]


@pytest.mark.parametrize(("name", "size_px"), [
    *QUICK, *(pytest.param(*one, marks=[pytest.mark.long, pytest.mark.timeout(1800)]) for one in SLOW),
])  # fmt: skip
def test_students_of_timm_go_out_for_edge_devices(name: str, size_px: int, tmp_path: Path) -> None:
    trained = made(tmp_path / "made", name, size_px)
    facts = exported(trained.run, tmp_path / "out")
    path = tmp_path / "out" / "onnx-edge" / "student.onnx"
    assert not_allowed(facts["operators"]) == []
    assert facts["operators"] == count_operators(onnx.load(path))
    pixels = torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    wanted = eager_runner(trained.encoder)(pixels)
    for opened in HERE:
        assert max_difference(opened(path)(pixels), wanted) <= 1e-4 * float(wanted.patch_BHWD.abs().max().clamp_min(1))
