"""A LiteRT program gives the student's tokens by name, in its own interpreter."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import eager_runner, litert_runner

from ..export.test_export import make_run
from ..export.test_usage_examples import need_the_students_tokens, run_example

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="litert-torch is not installed: pip install litert-torch"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize(("architecture", "size_px", "batch"), [
    ({"name": "vit-mini", "depth": 1}, 32, 2), ({"name": "convnext-mini"}, 64, 1), ("timm:resnet10t", 64, 1),
])  # fmt: skip
def test_a_program_gives_the_students_tokens_and_its_example_runs(architecture: Any, size_px: int, batch: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", architecture, size_px)
    facts = export(ExportOptions(run, tmp_path / "out", ("litert",), batch=batch))["written"]["litert"]
    assert facts["difference by scale"]["LiteRT"] <= 1e-4
    opened = litert_runner(tmp_path / "out" / "litert" / "student.tflite")
    pixels = torch.randn(batch, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))
    for found, wanted in zip(opened(pixels), eager_runner(open_trained(run).encoder)(pixels), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInput, match="alone, got"):
        opened(pixels[:, :, 1:])
    if batch == 1:
        need_the_students_tokens(run, tmp_path / "out" / "litert")
    else:
        assert run_example(tmp_path / "out" / "litert")[1] == "(2, 48) (2, 4, 4, 48)"
