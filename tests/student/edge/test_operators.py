"""Operators are counted wherever they stand, and what devices may not have is named."""

import onnx.parser
import pytest
from eupe_pipeline.student.edge.operators import ALLOWED, count_operators, not_allowed

INSIDE = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[2] x, bool c) => (float[2] y) {
    a = com.microsoft.Gelu (x)
    b = Add (a, a)
    y = If (c) <then_branch = t () => (float[2] u) { u = Relu (b) }, else_branch = e () => (float[2] v) { v = Identity (b) }>
}
"""


def test_operators_of_branches_and_of_other_domains_count() -> None:
    counts = count_operators(onnx.parser.parse_model(INSIDE))
    assert counts == {"Add": 1, "Identity": 1, "If": 1, "Relu": 1, "com.microsoft.Gelu": 1}
    assert not_allowed(counts) == ["If", "com.microsoft.Gelu"]


@pytest.mark.parametrize("name", [
    "Attention", "If", "Loop", "Scan", "Range", "Shape", "Size", "NonZero", "ConstantOfShape", "Einsum", "Gelu", "RMSNormalization",
    "RotaryEmbedding", "Sin", "Cos", "ScatterND", "GridSample", "GroupNormalization",
])  # fmt: skip
def test_what_devices_may_not_have_is_not_on_the_list(name: str) -> None:
    assert not_allowed({name: 1, "MatMul": 2}) == [name]


def test_every_operator_on_the_list_is_one_of_opset_18() -> None:
    assert {name for name in ALLOWED if onnx.defs.get_schema(name, 18).deprecated} == set()
