"""Every export format keeps the contract, its row is complete, and its name stands in the closed list of names."""

import tomllib
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from eupe_pipeline.storage.core.choices import EXPORT_FORMATS, ExportFormat
from eupe_pipeline.student.export.contract import ExportContract
from eupe_pipeline.student.export.export import ExportOptions
from eupe_pipeline.student.export.formats import FORMATS, ROWS
from eupe_pipeline.student.export.latency import known_runtimes
from eupe_pipeline.student.export.runtimes import EXTRAS


class TestEupe(ExportContract):
    form = "eupe"
    architecture: ClassVar[dict[str, Any]] = {"name": "eupe_vitt16", "layer_scale": 1.0}
    size_px = 64
    refused: ClassVar[dict[str, Any]] = {"name": "vit-mini"}


class TestTimm(ExportContract):
    form = "timm"
    refused: ClassVar[dict[str, Any]] = {"name": "vit-mini", "norm_eps": 1e-6}


class TestTransformers(ExportContract):
    form = "transformers"


class TestOnnx(ExportContract):
    form = "onnx"


class TestExecutorch(ExportContract):
    form = "executorch"


class TestCoreml(ExportContract):
    form = "coreml"


class TestLitert(ExportContract):
    form = "litert"


def test_every_format_runs_the_contract() -> None:
    assert {one.form for one in ExportContract.__subclasses__() if one.__module__ == __name__} == set(ROWS)


def test_the_list_of_names_is_the_table() -> None:
    assert tuple(ROWS) == EXPORT_FORMATS == get_args(ExportFormat)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_complete(name: str) -> None:
    row = FORMATS[name]
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert row.extra is None or row.extra in extras
    assert (row.extra is None) == (row.evaluated_from is not None)
    assert row.extra is None or row.extra in EXTRAS.values()
    assert set(row.runtimes) <= set(known_runtimes())
    assert ExportOptions(run=Path("run"), out=Path("out"), formats=(name,)).formats == (name,)
    assert all([row.title, row.usage, callable(row.write), callable(row.read)])
