"""What a graph is written for is checked where it is said, reduced to what a format takes, and names the folder."""

from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.choice import GraphChoice
from eupe_pipeline.student.export.formats import FORMATS, choices_of, row_of


@pytest.mark.parametrize(("choice", "folder"), [
    (GraphChoice(), "onnx"),
    (GraphChoice("edge"), "onnx-edge"),
    (GraphChoice("edge", "fp16"), "onnx-edge-fp16"),
    (GraphChoice("edge", batch=4), "onnx-edge"),
])  # fmt: skip
def test_target_and_precision_name_the_folder(choice: GraphChoice, folder: str) -> None:
    assert choice.folder("onnx") == folder


@pytest.mark.parametrize(("given", "why"), [
    ({"target": "phone"}, "phone"), ({"precision": "fp8"}, "fp8"), ({"batch": 0}, "at least 1"), ({"batch": True}, "at least 1"),
    ({"batch": 1.0}, "at least 1"),
])  # fmt: skip
def test_what_there_is_not_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        GraphChoice(**given)


def test_a_format_gets_what_it_takes() -> None:
    assert GraphChoice("edge", "fp16", 2).of(("precision",)) == GraphChoice(precision="fp16")
    assert GraphChoice("edge", "fp16", 2).of(()) == GraphChoice()


def test_an_onnx_graph_is_open_or_for_edge_devices_in_three_precisions() -> None:
    assert choices_of("onnx") == [GraphChoice(), GraphChoice("edge"), GraphChoice("edge", "fp16"), GraphChoice("edge", "int8")]
    assert choices_of("executorch") == [GraphChoice(), GraphChoice(precision="int8")]
    assert choices_of("timm") == [GraphChoice()]
    assert row_of("timm", GraphChoice("edge")) is FORMATS["timm"]
    for wrong in (GraphChoice(precision="fp16"), GraphChoice(batch=2)):
        with pytest.raises(BadInput, match="with --target edge it is written for"):
            row_of("onnx", wrong)
