"""`--precision int8`: ranges from the run's own views or from pictures, one graph for both runtimes, compared before it is published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.operators import count_operators, not_allowed
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.latency import LatencyOptions, latency
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import Runner, eager_runner, executorch_runner, onnx_runner
from eupe_pipeline.student.heads.kept import ENDING, KeptHead, write_head
from eupe_pipeline.student.quantised import agreement
from eupe_pipeline.student.quantised.sample import sample_of_views
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from .test_export import make_run, needs_executorch
from .test_timm_students import made
from .test_usage_examples import run_example, tokens_of_student, wide_picture

pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[quantise]'")
VIT = {"name": "vit-mini", "layer_scale": 1.0}


def with_views(run: Path, tiny: Any) -> Path:
    """The run, as if it had been trained on the tiny store's views."""
    identities = json.loads((run / "identities.json").read_text())
    (run / "identities.json").write_text(json.dumps({**identities, "views": [tiny.store.features("tiny-teacher").views.key]}))
    return run


def cosine(run: Runner, run_folder: Path, pixels: torch.Tensor) -> float:
    """The least cosine of a picture's tokens."""
    pairs = zip(run(pixels), eager_runner(open_trained(run_folder).encoder)(pixels), strict=True)
    return min(torch.nn.functional.cosine_similarity(a, b, dim=-1).min().item() for a, b in pairs if a is not None and b is not None)


@pytest.fixture(scope="module")
def vit(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any], list[str]]:
    """(run, OUT, facts, notes) of a small ViT in int8, two pictures at once, from the store's views."""
    folder, notes = tmp_path_factory.mktemp("int8"), list[str]()
    run = with_views(make_run(folder / "run", VIT, 32), tiny_store)
    options = ExportOptions(
        run, folder / "out", ("onnx",), target="edge", precision="int8", batch=2, store=tiny_store.store.url, calibration_views=20
    )
    facts = export(options, lambda event: notes.append(event.get("text", "")))["written"]["onnx"]
    return run, folder / "out" / "onnx-edge-int8", facts, notes


def test_its_tokens_point_where_the_students_do(vit: tuple[Path, Path, dict[str, Any], list[str]], tiny_store: Any) -> None:
    run, folder, facts, _ = vit
    trained = open_trained(run)
    keys = json.loads((run / "identities.json").read_text())["views"]
    sample = sample_of_views(tiny_store.store.url, keys, 20, trained.preprocessing.input)
    pixels = trained.preprocessing.apply(sample.compared_BHWC[:2])
    assert 0.99 < cosine(onnx_runner(folder / "student.onnx"), run, pixels) < 1
    assert min(facts["cosine of the tokens"].values()) > 0.99
    assert facts["least cosine allowed"] == agreement.LEAST_COSINE


def test_it_says_what_the_ranges_were_measured_on(vit: tuple[Path, Path, dict[str, Any], list[str]]) -> None:
    run, folder, facts, notes = vit
    key = json.loads((run / "identities.json").read_text())["views"][0]
    assert facts["ranges"] == f"measured on 20 views of {key}"
    assert facts["compared on"] == f"9 other views of {key}"
    assert f"int8 ranges: measured on 20 views of {key}; compared on 9 others" in notes
    card = (folder / "README.md").read_text()
    assert "in int8" in card
    assert "cosine of the tokens" in card
    assert key in card


def test_every_layer_multiplies_int8_weights_by_channel_and_attention_stays_in_floats(
    vit: tuple[Path, Path, dict[str, Any], list[str]],
) -> None:
    run, folder, _, _ = vit
    model = onnx.load(folder / "student.onnx")
    assert not not_allowed(counts := count_operators(model))
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    tensors = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    weights = [made_by[node.input[1]] for node in model.graph.node if node.op_type in ("MatMul", "Conv", "Gemm")]
    int8 = [node for node in weights if node.op_type == "DequantizeLinear"]
    layers = [tensor for name, tensor in open_trained(run).encoder.named_parameters() if name.endswith("weight") and tensor.ndim in (2, 4)]
    assert len(int8) == len(layers)
    assert all(tensors[node.input[0]].dtype == np.int8 and tensors[node.input[1]].ndim == 1 for node in int8)
    assert sorted(tensors[node.input[0]].size for node in int8) == sorted(layer.numel() for layer in layers)
    assert counts["MatMul"] == len(int8) - counts["Conv"] + 2 * 2  # two blocks, two products of attention each


@pytest.mark.long
def test_a_folder_of_pictures_serves_as_well(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", VIT, 32)
    for number in range(12):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        wide_picture(tmp_path).rename(tmp_path / "pictures" / f"{number}.png")
    options = ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", precision="int8", calibrate=tmp_path / "pictures")
    assert export(options)["written"]["onnx"]["ranges"] == "measured on 10 pictures of pictures"
    found, _ = run_example(tmp_path / "out" / "onnx-edge-int8")
    wanted = tokens_of_student(run, wide_picture(tmp_path))
    assert torch.nn.functional.cosine_similarity(found.patch_BHWD, wanted.patch_BHWD, dim=-1).min() > 0.99
    assert latency(LatencyOptions(tmp_path / "out", calls=1, warmup=0, runtimes=("onnxruntime edge int8",)))["runtimes"]


@pytest.mark.long
def test_a_cnn_with_batch_norm_and_relu_is_folded_first(tiny_store: Any, tmp_path: Path) -> None:
    run = with_views(made(tmp_path, "timm:test_resnet", 64).run, tiny_store)
    facts = export(ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", precision="int8", store=tiny_store.store.url))
    operators = facts["written"]["onnx"]["operators"]
    assert "BatchNormalization" not in operators
    assert operators["Conv"] > 4
    assert min(facts["written"]["onnx"]["cosine of the tokens"].values()) > 0.98


@needs_executorch
def test_executorch_gives_the_tokens_that_onnx_runtime_gives(
    vit: tuple[Path, Path, dict[str, Any], list[str]], tiny_store: Any, tmp_path: Path
) -> None:
    run, folder, _, _ = vit
    options = ExportOptions(run, tmp_path, ("executorch",), precision="int8", store=tiny_store.store.url, calibration_views=20)
    facts = export(options)["written"]["executorch"]
    (program,) = (tmp_path / "executorch-int8").glob("*.pte")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    both = onnx_runner(folder / "student.onnx")(pixels)
    for number, one in enumerate(pixels):
        found = executorch_runner(program)(one[None])
        assert torch.nn.functional.cosine_similarity(found.patch_BHWD[0], both.patch_BHWD[number], dim=-1).min() > 0.999
    assert min(facts["cosine of the tokens"].values()) > 0.99


@pytest.mark.long
def test_a_student_that_int8_cannot_hold_is_refused_and_leaves_nothing(tiny_store: Any, tmp_path: Path) -> None:
    """One channel's weight is so large that the activation behind it has one scale for everything and one value."""
    run = with_views(make_run(tmp_path / "run", VIT, 32), tiny_store)
    weights = load_file(run / "model" / "backbone.safetensors")
    weights["backbone.blocks.1.mlp.fc2.bias"][0] += 1e5
    save_file(weights, run / "model" / "backbone.safetensors")
    with pytest.raises(BadInput, match=r"turn too far.*--set quantise\.steps"):
        export(ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", precision="int8", store=tiny_store.store.url))
    assert not (tmp_path / "out" / "onnx-edge-int8").exists()


@pytest.mark.parametrize(("options", "why"), [
    ({"formats": ("onnx",), "precision": "int8"}, "an open ONNX graph takes any batch and is fp32; with --target edge"),
    ({"formats": ("coreml",), "precision": "int8"}, "a Core ML package is fp32 or fp16 here"),
    ({"formats": ("executorch",), "precision": "fp16"}, "ExecuTorch programs for XNNPACK are fp32 and int8"),
    ({"formats": ("litert",), "precision": "int8"}, "--precision is of the formats onnx, executorch, coreml"),
    ({"formats": ("onnx",), "target": "edge", "calibrate": Path("x")}, "are of --precision int8"),
    ({"formats": ("onnx",), "target": "edge", "calibration_views": 3}, "are of --precision int8"),
    ({"formats": ("onnx",), "target": "edge", "store": "x"}, "--adapters and --store go together"),
    ({"formats": ("onnx",), "target": "edge", "precision": "int8", "calibration_views": 0}, "at least 1"),
    ({"formats": ("onnx",), "target": "edge", "precision": "int8", "adapters": True}, "--adapters and --store go together"),
])  # fmt: skip
def test_what_int8_is_not_for_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        ExportOptions(Path("run"), Path("out"), **options)


def test_a_detector_is_refused_because_int8_changes_its_choice_of_queries(tmp_path: Path) -> None:
    run, head = make_run(tmp_path / "run", VIT, 32), tmp_path / f"boxes{ENDING}"
    write_head(head, KeptHead("detection", {"weights_sha256": open_trained(run).weights_sha256}, {}, {}, {"size_px": 32}))
    options = ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", precision="int8", calibrate=tmp_path, heads=(str(head),))
    with pytest.raises(BadInput, match="the detector detection chooses its queries by rank"):
        export(options)


def test_without_pictures_both_ways_to_name_them_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", VIT, 32)
    with pytest.raises(BadInput, match=r"give --store URL.*or --calibrate FOLDER"):
        export(ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", precision="int8"))
