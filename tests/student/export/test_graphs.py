"""ONNX graphs keep batch and both sides open and are checked before they count; what is missing is named with its extra."""

from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.export import graphs
from eupe_pipeline.student.export.graphs import max_difference, write_onnx
from eupe_pipeline.student.export.runtimes import eager_runner, import_optional, onnx_runner

from ...teachers.checkpoints.test_official import randomised


@pytest.mark.parametrize("architecture", ["vit-mini", pytest.param("convnext-mini", marks=pytest.mark.long)])
def test_an_onnx_graph_takes_any_batch_and_any_sides(architecture: str, tmp_path: Path) -> None:
    encoder = randomised(architecture)
    facts = write_onnx(encoder, 4 * encoder.stride_px, tmp_path / "student.onnx")
    assert facts["opset"] == graphs.OPSET
    run, reference, stride = onnx_runner(tmp_path / "student.onnx"), eager_runner(encoder), encoder.stride_px
    for batch, rows, columns in ((1, 7, 7), (3, 2, 5), (5, 6, 4)):
        pixels = torch.randn(batch, 3, rows * stride, columns * stride, generator=torch.Generator().manual_seed(rows))
        assert max_difference(run(pixels), reference(pixels)) <= 1e-4


@pytest.mark.long
def test_a_graph_with_other_tokens_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(graphs, "onnx_runner", lambda path: eager_runner(randomised({"name": "vit-mini", "depth": 1})))
    with pytest.raises(BadInput, match="other tokens than the student"):
        write_onnx(randomised("vit-mini"), 32, tmp_path / "student.onnx")


def test_a_missing_library_is_an_error_that_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BadInput, match=r"onnxruntime is not installed.*eupe-pipeline\[export\]"):
        import_optional("onnxruntime")
    with pytest.raises(BadInput, match=r"eupe-pipeline\[executorch\]"):
        import_optional("executorch.runtime")
    with pytest.raises(ModuleNotFoundError):
        import_optional("something.else")
