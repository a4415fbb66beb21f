"""`distill --export` takes the graphs for devices by the names of their folders."""

from pathlib import Path

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation.options import DistillOptions
from eupe_pipeline.storage.core.choices import EXPORT_FORMATS, GRAPH_EXPORTS
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.choice import GraphChoice
from eupe_pipeline.student.export.formats import choices_of, named

from .conftest import Command


@pytest.mark.long
def test_a_distillation_writes_graphs_for_devices_once(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    import onnx

    call = ["distill", photos, "--teacher", teacher_run, "--student", "vit-mini", "--recipe", recipe, "--workers", 0]
    call += ["--out", tmp_path / "run", "--export", "onnx-edge-fp16", "--export", "onnx-edge-int8", "--export", "timm"]
    exports = command(*call)["exports"]["vit-mini"]
    assert list(exports) == ["onnx-edge-fp16", "onnx-edge-int8", "timm"]
    int8 = onnx.load(str(Path(exports["onnx-edge-int8"]) / "student.onnx"))  # by ranges of the views that taught it
    assert "QuantizeLinear" in {node.op_type for node in int8.graph.node}
    file = Path(exports["onnx-edge-fp16"]) / "student.onnx"
    model = onnx.load(str(file))
    assert model.opset_import[0].version == 18
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer)
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    written = file.stat().st_mtime_ns
    command(*call)
    assert file.stat().st_mtime_ns == written


def test_every_graph_that_a_format_has_is_offered_by_its_folders_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offered = [choice.folder(form) for form in EXPORT_FORMATS for choice in choices_of(form)]
    assert sorted(offered) == sorted([*EXPORT_FORMATS, *GRAPH_EXPORTS])
    assert named("onnx-edge-fp16") == ("onnx", GraphChoice("edge", "fp16"))
    assert named("timm") == ("timm", GraphChoice())
    one = (TeacherRequest("efficientnet-lite0"),)
    for name in ("onnx-edg", "onnx-fp16", "timm-edge", "edge"):
        with pytest.raises(BadInput, match="unknown export format"):
            DistillOptions("photos", tmp_path, one, ("vit-mini",), exports=(name,))
    words = ["distill", str(tmp_path), "--teacher", "efficientnet-lite0", "--student", "vit-mini", "--out", str(tmp_path / "run")]
    assert main([*words, "--export", "onnx-edgy"]) == 2
    assert "onnx-edge" in capsys.readouterr().err
    assert main([*words, "--export", "eupe"]) == 2
    assert "official hub builds six shapes" in capsys.readouterr().err
