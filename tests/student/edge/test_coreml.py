"""A Core ML package has the student's inputs, outputs and weights, and one of another form is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.coreml import check_structure
from eupe_pipeline.student.edge.fold import fold_constants
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import ExportWrapper

from ..export.test_export import make_run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="coremltools is not installed: pip install -e '.[coreml]'"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_package_has_the_students_form_in_either_precision(precision: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"name": "vit-mini", "depth": 1}, 32)
    options = ExportOptions(run, tmp_path / "out", ("coreml",), precision=precision, batch=2)  # type: ignore[arg-type] # one of two
    facts = export(options)["written"]["coreml"]
    assert (facts["input"], facts["precision"]) == ("2x3x32x32", precision)
    assert (facts["operations"]["softmax"], facts["operations"].get("cast", 0) > 0) == (1, precision == "fp16")
    folder = Path(facts["folder"])
    assert folder.name == ("coreml" if precision == "fp32" else "coreml-fp16")
    assert sorted(path.name for path in (folder / "student.mlpackage").iterdir()) == ["Data", "Manifest.json"]
    assert json.loads((folder / "export.json").read_text())["precision"] == precision
    wrapper = ExportWrapper(open_trained(run).encoder)
    half = precision == "fp16"
    for shape, why in (((1, 3, 32, 32), "takes and gives"), ((2, 3, 40, 40), "takes and gives")):
        pixels = torch.zeros(shape)
        with pytest.raises(BadInput, match=why):
            check_structure(folder / "student.mlpackage", fold_constants(wrapper, pixels), pixels, half=half)
    (folder / "student.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").write_bytes(b"0" * 1000)
    pixels = torch.zeros(2, 3, 32, 32)
    with pytest.raises(BadInput, match="holds 1000 bytes of weights"):
        check_structure(folder / "student.mlpackage", fold_constants(wrapper, pixels), pixels, half=half)
