"""Heads that evaluations keep go along with the student, and the exported graphs have the evaluations' figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.depth import DepthOptions, evaluate_depth
from eupe_pipeline.jobs.evaluation.linear import LinearOptions, evaluate_linear
from eupe_pipeline.jobs.evaluation.mask_checks import MaskClasses
from eupe_pipeline.jobs.evaluation.segmentation import SegmentationOptions, evaluate_segmentation
from eupe_pipeline.storage.annotations.dense_pairs import depth_pairs, read_depth, read_picture, segmentation_pairs
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.sources.decode import Pixels
from eupe_pipeline.storage.views.pixels import center_square
from eupe_pipeline.storage.views.view_spec import Input
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.graphs import fold_student
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import eager_outputs, executorch_outputs, onnx_outputs
from eupe_pipeline.student.heads.automodel import run_folder
from eupe_pipeline.student.heads.chosen import choose_heads
from eupe_pipeline.student.heads.kept import read_head
from eupe_pipeline.student.probes.dense_head import ADE20K_RECIPE, NYU_RECIPE
from eupe_pipeline.student.probes.depth import DepthView, depth_metrics, valid_depth
from eupe_pipeline.student.probes.segmentation import Confusion, SegmentationView, resize_shorter, slide_inference, upsampled_argmax
from eupe_pipeline.student.quantised.scheme import observers, prepare
from numpy.typing import NDArray
from onnx import TensorProto
from onnx import load as load_graph
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...student.export.test_export import make_run, needs_executorch

SIDE, CLASSES = 64, 3
COLOURS = np.array([[200, 60, 60], [60, 190, 70], [70, 60, 200]], np.uint8)
NAMES = ("cls", "patch", "linear", "segmentation", "depth")
SEGMENTATION: dict[str, Any] = {
    "view": SegmentationView(SIDE, 40, scale=(1.0, 1.0), distort=False),
    "head": replace(ADE20K_RECIPE, batch_size=4, learning_rate=0.02), "steps": 8, "evaluate_every": 8,
}  # fmt: skip
DEPTH: dict[str, Any] = {
    "view": DepthView(crop_hw=(SIDE, SIDE), nyu_crops=False, distort=False), "head": replace(NYU_RECIPE, batch_size=4), "steps": 4,
}  # fmt: skip


def draw_data(root: Path) -> Path:
    """Squares of classes in noise: pictures with masks and depth that are wider than high, and a folder a class to classify."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for number in range(count):
            classes = generator.integers(0, CLASSES, (4, 5)).repeat(16, axis=0).repeat(16, axis=1)
            picture = np.clip(COLOURS[classes] + generator.normal(0, 25, (*classes.shape, 3)), 0, 255).astype(np.uint8)
            layers: dict[str, NDArray[Any]] = {
                "images": picture,
                "masks": classes.astype(np.uint8),
                "depth": (classes * 1500 + 900).astype(np.uint16),
            }
            for folder, values in layers.items():
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / folder / split / f"{number}.png")
        for name, colour in zip(("red", "green", "blue"), COLOURS, strict=True):
            (root / split / name).mkdir(parents=True)
            for number in range(2 * count):
                noisy = colour + generator.normal(0, 70, (70, 90, 3)) + generator.normal(0, 60, 3)
                Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def evaluate_all(run: Path, data: Path) -> dict[str, dict[str, Any]]:
    common: dict[str, Any] = {"model": str(run), "data": data, "device": "cpu", "protocol": "ours"}
    linear = LinearOptions(model=str(run), data=str(data), powers=(-2.0, 0.0), crop_fraction=0.9, size_px=SIDE, device="cpu")
    return {
        "linear": evaluate_linear(linear),
        "segmentation": evaluate_segmentation(SegmentationOptions(**common, **SEGMENTATION)),
        "depth": evaluate_depth(DepthOptions(**common, **DEPTH)),
    }


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, dict[str, Any]]]:
    """A run, its data, the results of three evaluations that kept their heads."""
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUPE_PIPELINE_HOME", str(folder / "home"))
        run, data = make_run(folder / "run", {"name": "vit-mini", "depth": 1, "layer_scale": 1.0}, SIDE), draw_data(folder / "data")
        return run, data, evaluate_all(run, data)


@pytest.fixture(scope="module")
def exported(evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, out = evaluated[0], tmp_path_factory.mktemp("exported")
    heads = ("linear", "segmentation", "depth")
    export(ExportOptions(run, out, ("onnx", "transformers"), heads=heads))
    return out


@pytest.fixture(scope="module")
def edge(evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], exported: Path) -> Path:
    export(ExportOptions(evaluated[0], exported, ("onnx",), target="edge", heads=("linear", "segmentation", "depth")))
    return exported / "onnx-edge"


def pixels_of(run: Path, picture: Pixels) -> Tensor:
    return open_trained(run).preprocessing.apply(torch.from_numpy(picture.copy())[None]).contiguous()


Outputs = Any  # pixels → {name: output}


def top1(run: Path, data: Path, outputs: Outputs) -> float:
    right, count = 0, 0
    for number, name in enumerate(sorted(path.name for path in (data / "val").iterdir())):
        for path in (data / "val" / name).iterdir():
            square = center_square(read_picture(path), Input(SIDE, "bicubic"), 0.9)
            right, count = right + int(outputs(pixels_of(run, square))["linear"].argmax() == number), count + 1
    return 100.0 * right / count


def miou(run: Path, data: Path, outputs: Outputs) -> dict[str, Any]:
    confusion, masks = Confusion(CLASSES), MaskClasses(CLASSES, False, 255)
    for pair in segmentation_pairs(data, "val"):

        def predict(window: Pixels) -> Tensor:
            logits_BKHW = outputs(pixels_of(run, window))["segmentation"]
            return functional.interpolate(logits_BKHW, window.shape[:2], mode="bilinear")[0]

        logits = slide_inference(resize_shorter(read_picture(pair.picture), SIDE), predict, SIDE, 40)
        truth = masks.read(pair)
        confusion.add(truth, upsampled_argmax(logits, *truth.shape))
    return confusion.metrics()


def rmse(run: Path, data: Path, outputs: Outputs, columns: int | None = None) -> float:
    """Of whole pictures, or of the first columns of each."""
    errors, view = list[float](), DEPTH["view"]
    for pair in depth_pairs(data, "val"):
        truth_m = read_depth(pair.target)[:, :columns]
        metres_BHW = outputs(pixels_of(run, read_picture(pair.picture)[:, :columns]))["depth"]
        guess_m = functional.interpolate(metres_BHW[:, None], truth_m.shape, mode="bilinear")[0, 0].numpy()
        errors.append(depth_metrics(guess_m, truth_m, valid_depth(truth_m, view))["rmse"])
    return float(np.mean(errors))


def rmse_of_squares(run: Path, data: Path) -> float:
    """What graphs of one square shape are compared with: the trained student and its head on the first columns of each picture."""
    trained = open_trained(run)
    outputs = eager_outputs(trained.encoder, choose_heads(NAMES[2:], [run], trained.weights_sha256))
    return rmse(run, data, lambda pixels: dict(zip(NAMES, outputs(pixels), strict=True)), columns=SIDE)


def onnx(path: Path) -> Outputs:
    run = onnx_outputs(path, NAMES)
    return lambda pixels: dict(zip(NAMES, run(pixels), strict=True))


def test_the_open_graph_has_the_figures_of_all_three_evaluations(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], exported: Path
) -> None:
    run, data, results = evaluated
    outputs = onnx(exported / "onnx" / "student.onnx")
    assert results["linear"]["top1"] < 100, "a figure that nothing can change shows nothing"
    assert top1(run, data, outputs) == pytest.approx(results["linear"]["top1"], abs=1e-9)
    found = miou(run, data, outputs)
    assert found["miou"] == pytest.approx(results["segmentation"]["miou"], abs=0.02)
    assert found["pixel_accuracy"] == pytest.approx(results["segmentation"]["pixel_accuracy"], abs=0.02)
    assert rmse(run, data, outputs) == pytest.approx(results["depth"]["rmse"], abs=1e-4)


@pytest.mark.long
def test_the_edge_graph_has_the_figures_of_evaluations_at_its_size(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], edge: Path
) -> None:
    run, data, results = evaluated
    outputs = onnx(edge / "student.onnx")
    assert top1(run, data, outputs) == pytest.approx(results["linear"]["top1"], abs=1e-9)
    assert miou(run, data, outputs)["miou"] == pytest.approx(results["segmentation"]["miou"], abs=0.02)
    assert rmse(run, data, outputs, columns=SIDE) == pytest.approx(rmse_of_squares(run, data), abs=1e-4)


@pytest.fixture(scope="module")
def int8(evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], exported: Path) -> tuple[Path, dict[str, Any]]:
    """(folder of the int8 graph, facts)."""
    run, data, _ = evaluated
    options = ExportOptions(run, exported, ("onnx",), target="edge", precision="int8", calibrate=data / "train", heads=NAMES[2:])
    return exported / "onnx-edge-int8", export(options)["written"]["onnx"]


def need_near(run: Path, data: Path, results: dict[str, dict[str, Any]], outputs: Outputs) -> None:
    """What int8 may cost the figures here: a picture of 18, a point of mIoU, a hundredth of the depth's error."""
    assert top1(run, data, outputs) == pytest.approx(results["linear"]["top1"], abs=100 / 18 + 1e-6)
    assert miou(run, data, outputs)["miou"] == pytest.approx(results["segmentation"]["miou"], abs=1)
    assert rmse(run, data, outputs, columns=SIDE) == pytest.approx(rmse_of_squares(run, data), rel=0.01)


@pytest.mark.long
def test_the_int8_graph_has_nearly_the_figures_and_says_how_its_heads_differ(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], int8: tuple[Path, dict[str, Any]]
) -> None:
    run, data, results = evaluated
    folder, facts = int8
    need_near(run, data, results, onnx(folder / "student.onnx"))
    stated, card = facts["heads in int8"], (folder / "README.md").read_text()
    assert list(stated) == ["linear", "segmentation", "depth"]
    assert 0.95 <= stated["segmentation"]["same class"] <= 1
    assert all(0 < one["difference by scale"] < 0.05 for one in stated.values())
    assert "same class" not in stated["depth"]
    assert f"linear gives the same class for {100 * stated['linear']['same class']:.1f} %" in card
    assert json.loads((folder / "heads.json").read_text())["linear"]["in int8"] == stated["linear"]


@pytest.mark.long
def test_heads_of_an_int8_graph_stay_in_floats(int8: tuple[Path, dict[str, Any]]) -> None:
    graph = load_graph(int8[0] / "student.onnx").graph
    floats = {one.name: one.dims[0] for one in graph.initializer if one.data_type == TensorProto.FLOAT and one.dims}
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    bins = 256
    assert sorted(floats[name] for name in weights if name in floats) == [CLASSES, CLASSES, bins, bins], "depth sees a picture twice"
    assert sum(one.data_type == TensorProto.INT8 and len(one.dims) > 1 for one in graph.initializer) == 5, "the student's layers"


@pytest.mark.long
def test_the_ranges_that_a_training_has_seen_fit_its_student_with_heads(evaluated: tuple[Path, Path, dict[str, dict[str, Any]]]) -> None:
    trained, pixels = open_trained(evaluated[0]), torch.zeros(1, 3, SIDE, SIDE)
    heads = choose_heads(NAMES[2:], [evaluated[0]], trained.weights_sha256)
    alone, headed = (set(observers(prepare(fold_student(trained.encoder, pixels, some), "known"))) for some in ((), heads))
    assert alone == headed
    assert alone


@needs_executorch
@pytest.mark.long
def test_the_int8_executorch_program_has_nearly_the_figures(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    run, data, results = evaluated
    facts = export(ExportOptions(run, tmp_path, ("executorch",), precision="int8", calibrate=data / "train", heads=NAMES[2:]))
    program = executorch_outputs(tmp_path / "executorch-int8" / "student-int8-static.pte")
    need_near(run, data, results, lambda pixels: dict(zip(NAMES, program(pixels), strict=True)))
    assert list(facts["written"]["executorch"]["heads in int8"]) == list(NAMES[2:])


@needs_executorch
def test_the_executorch_program_has_the_figures_of_evaluations_at_its_size(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    run, data, results = evaluated
    export(ExportOptions(run, tmp_path, ("executorch",), heads=NAMES[2:]))
    program = executorch_outputs(tmp_path / "executorch" / "student-fp32.pte")
    outputs = lambda pixels: dict(zip(NAMES, program(pixels), strict=True))  # noqa: E731
    assert top1(run, data, outputs) == pytest.approx(results["linear"]["top1"], abs=1e-9)
    assert miou(run, data, outputs)["miou"] == pytest.approx(results["segmentation"]["miou"], abs=0.02)
    assert rmse(run, data, outputs, columns=SIDE) == pytest.approx(rmse_of_squares(run, data), abs=1e-4)


def test_the_automodel_folder_has_the_figures_and_the_names_of_the_classes(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], exported: Path
) -> None:
    run, data, results = evaluated
    folder = exported / "transformers"
    pictures = [read_picture(path) for path in sorted((data / "val").rglob("*.png"))]
    squares = np.stack([center_square(picture, Input(SIDE, "bicubic"), 0.9) for picture in pictures])
    found = run_folder(folder, open_trained(run).preprocessing.apply(torch.from_numpy(squares)).contiguous())
    right = found["linear"].argmax(1) == torch.arange(CLASSES).repeat_interleave(len(pictures) // CLASSES)
    assert 100 * float(right.double().mean()) == pytest.approx(results["linear"]["top1"], abs=1e-9)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "blue", "1": "green", "2": "red"}


@pytest.mark.parametrize(
    "form", ["onnx", pytest.param("onnx-edge", marks=pytest.mark.long), pytest.param("transformers", marks=pytest.mark.long)]
)
def test_the_usage_example_runs_and_the_card_says_heads_and_figures(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], exported: Path, form: str, tmp_path: Path
) -> None:
    _, data, results = evaluated
    folder, environment = exported / form, {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    guard = "from eupe_pipeline.teachers.runtime import torchvision_guard as t; t.install(); import runpy; runpy.run_path('usage.py')"
    command = [sys.executable, "-W", "ignore", "-c", guard, str(data / "images" / "val" / "0.png")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["linear:", "segmentation:", "depth:"]
    card = (folder / "README.md").read_text()
    assert f"top-1 {results['linear']['top1']:.2f} %" in card
    assert f"mIoU {results['segmentation']['miou']:.2f} %" in card
    assert f"RMSE {results['depth']['rmse']:.4f} m" in card
    assert "windows of 64 px every 40 px" in card
    assert "eupe_pipeline" not in (folder / "usage.py").read_text()


def test_a_kept_head_says_what_it_belongs_to(evaluated: tuple[Path, Path, dict[str, dict[str, Any]]]) -> None:
    run, _, results = evaluated
    head = read_head(Path(results["linear"]["head"]))
    assert head.weights_sha256 == open_trained(run).weights_sha256
    assert head.labels == ("blue", "green", "red")
    assert head.input["crop_fraction"] == 0.9
    assert head.results["top1"] == results["linear"]["top1"]
    assert head.tensors["linear.weight"].dtype == torch.float64


def test_a_record_without_its_head_is_evaluated_again_and_then_found(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, _ = evaluated
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    run = make_run(tmp_path / "run", {"name": "vit-mini", "depth": 1}, SIDE)
    options = LinearOptions(model=str(run), data=str(data), powers=(0.0,), device="cpu", keep_head=False)
    old = evaluate_linear(options)
    assert "head" not in old
    with pytest.raises(BadInput, match=r"was evaluated by linear, but its head was not kept; evaluate again, which keeps it now: `eupe"):
        export(ExportOptions(run, tmp_path / "out", ("onnx",), heads=("linear",)))
    assert evaluate_linear(options)["already"], "who wants no head has the record"
    again = evaluate_linear(replace(options, keep_head=True))
    assert not again["already"]
    assert (again["top1"], Path(again["head"]).is_file()) == (old["top1"], True)
    assert evaluate_linear(replace(options, keep_head=True))["already"]


def test_a_head_of_another_encoder_is_refused_with_both_digests(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    run, _, results = evaluated
    other = make_run(tmp_path / "other", {"name": "vit-mini", "depth": 1, "layer_scale": 0.5}, SIDE)
    digests = open_trained(run).weights_sha256, open_trained(other).weights_sha256
    with pytest.raises(CacheMismatch, match=rf"of the weights {digests[0]}, and these are {digests[1]}"):
        export(ExportOptions(other, tmp_path / "out", ("onnx",), heads=(results["linear"]["head"],)))
    assert not (tmp_path / "out" / "onnx").exists()


@pytest.mark.parametrize(("heads", "why"), [
    (("colour",), r"unknown head of .*'colour'.*depth-[0-9a-f]{12}, .*linear-[0-9a-f]{12}"),
    (("knn=linear", "knn=depth"), "two heads are called 'knn'"),
    (("Cls=linear",), "is no name of an output"),
    (("cls=linear",), "is no name of an output"),
    (("here/linear-0.head.safetensors",), "is not there"),
])  # fmt: skip
def test_a_newcomers_mistakes_are_told(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path, heads: tuple[str, ...], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        export(ExportOptions(evaluated[0], tmp_path / "out", ("onnx",), heads=heads))


def test_formats_that_hold_the_student_alone_and_graphs_of_another_size_are_refused(
    evaluated: tuple[Path, Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    run = evaluated[0]
    with pytest.raises(BadInput, match="timm holds the student alone; heads go along in transformers, onnx, executorch"):
        ExportOptions(run, tmp_path / "out", ("onnx", "timm"), heads=("linear",))
    with pytest.raises(BadInput, match="the head linear was measured at 64 px and this graph takes 128 px alone"):
        export(ExportOptions(run, tmp_path / "out", ("onnx",), target="edge", size_px=128, heads=("linear",)))
    assert not (tmp_path / "out" / "onnx-edge").exists()
