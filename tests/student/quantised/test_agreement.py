"""How int8 heads differ from the trained ones: shares and differences of known numbers, and what is refused."""

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.quantised.agreement import compare_int8
from torch import Tensor

CLS, PATCH = torch.ones(2, 3), torch.ones(2, 1, 2, 3)
LOGITS = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


def outputs(*of_heads: Tensor) -> list[Tensor]:
    return [CLS, PATCH, *of_heads]


def test_the_share_of_the_same_class_and_the_difference_by_scale_are_of_all_pictures() -> None:
    moved = LOGITS + torch.tensor([[0.0, 0.0], [0.0, 1.5]])
    metres = torch.full((2, 1, 2), 2.0)
    batches = [torch.zeros(2, 3, 4, 4)] * 2
    tokens, heads = compare_int8(
        lambda _: outputs(LOGITS, metres), lambda _: outputs(moved, metres + 0.2), batches, {"linear": True, "depth": False}
    )
    assert tokens["cosine of the tokens"] == {"cls": pytest.approx(1.0), "patch": pytest.approx(1.0)}
    assert heads["linear"] == {"same class": 1.0, "difference by scale": pytest.approx(1.5 / 5), "limit of the difference": 0.3}
    assert heads["depth"] == {"difference by scale": pytest.approx(0.1), "limit of the difference": 0.3}


def test_a_class_that_changes_is_counted_by_patch() -> None:
    wanted = torch.tensor([[[10.0, 10.0]], [[9.9, 0.0]]])[None]  # one picture, two classes, a row of two patches
    computed = torch.tensor([[[9.9, 10.0]], [[10.0, 0.0]]])[None]
    _, heads = compare_int8(lambda _: outputs(wanted), lambda _: outputs(computed), [torch.zeros(2, 3, 4, 4)], {"segmentation": True})
    assert heads["segmentation"]["same class"] == 0.5


@pytest.mark.parametrize("computed", [LOGITS * 1.4, LOGITS * float("nan"), LOGITS[:, :1]])
def test_other_predictions_are_refused(computed: Tensor) -> None:
    with pytest.raises(BadInput, match=r"head linear predicts otherwise.*at most 0\.3|gives linear of \(2, 1\), the student of \(2, 2\)"):
        compare_int8(lambda _: outputs(LOGITS), lambda _: outputs(computed), [torch.zeros(2, 3, 4, 4)], {"linear": True})
