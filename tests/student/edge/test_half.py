"""An ONNX graph in fp16 keeps fp32 at its ends and in its sums, and refuses a weight that fp16 has not."""

from typing import Any

import numpy as np
import onnx
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.edge.half import to_half
from onnx import TensorProto, helper, numpy_helper


def graph(weight: "np.ndarray[Any, Any]") -> Any:
    """pixels → MatMul → LayerNormalization → Add (the same weight) → Resize → tokens."""
    nodes = [
        helper.make_node("MatMul", ["pixels", "weight"], ["product"]),
        helper.make_node("LayerNormalization", ["product", "gain"], ["normed"]),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1e-6], np.float32), "one")),
        helper.make_node("Add", ["normed", "one"], ["sum"]),
        helper.make_node("Mul", ["sum", "gain"], ["scaled"]),
        helper.make_node("Resize", ["scaled", "", "scales"], ["tokens"], mode="nearest"),
    ]
    constants = {"weight": weight, "gain": np.full(4, 0.5, np.float32), "scales": np.array([1, 2], np.float32)}
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_weights_are_fp16_but_norms_ends_and_scales_of_a_resize_are_fp32() -> None:
    weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    half = to_half(graph(weight))
    kinds = {one.name: one.data_type for one in half.graph.initializer}
    assert kinds == {
        "weight__half": TensorProto.FLOAT16, "gain": TensorProto.FLOAT, "one__half": TensorProto.FLOAT16,
        "gain__half": TensorProto.FLOAT16, "scales": TensorProto.FLOAT,
    }  # fmt: skip
    assert [node.op_type for node in half.graph.node] == [
        "Cast", "MatMul", "Cast", "LayerNormalization", "Cast", "Add", "Mul", "Resize", "Cast",
    ]  # fmt: skip
    assert [half.graph.input[0].type.tensor_type.elem_type, half.graph.output[0].type.tensor_type.elem_type] == [TensorProto.FLOAT] * 2
    onnx.checker.check_model(half, full_check=True)
    import onnxruntime

    pixels = np.array([[1, 2, 3, 4], [-1, 0, 2, 5]], np.float32)
    wanted, found = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[0]
        for one in (graph(weight), half)
    )
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert not np.array_equal(found, wanted)


def test_a_weight_beyond_fp16_is_refused_by_name_and_an_infinite_mask_is_not() -> None:
    weight = np.zeros((4, 4), np.float32)
    weight[0, 0] = 65_504
    weight[1, 1] = -np.inf
    kept = {one.name: numpy_helper.to_array(one) for one in to_half(graph(weight)).graph.initializer}["weight__half"]
    assert kept.dtype == np.float16
    assert (kept[0, 0], kept[1, 1]) == (65_504, -np.inf)
    weight[0, 0] = -70_000
    with pytest.raises(BadInput, match=r"weight holds 7e\+04, and fp16 ends at 65504"):
        to_half(graph(weight))
