"""Every precision that a teacher or a student may have says what autocast computes in; what has no row has no silent default."""

from typing import get_args

import pytest
import torch
from eupe_pipeline.storage.core import choices
from eupe_pipeline.teachers.runtime.devices import AUTOCAST, mixed_precision


def test_the_table_has_the_precisions_that_are_offered_beside_auto() -> None:
    assert tuple(AUTOCAST) == choices.COMPUTE_PRECISIONS
    assert choices.PRECISIONS == ("auto", *choices.COMPUTE_PRECISIONS) == get_args(choices.Precision)


@pytest.mark.parametrize("precision", AUTOCAST)
def test_a_layer_computes_in_what_the_row_says_under_an_outer_autocast_too(precision: choices.ComputePrecision) -> None:
    linear, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    wanted = AUTOCAST[precision] or torch.float32
    with torch.autocast("cpu", torch.bfloat16), mixed_precision("cpu", precision):
        assert linear(x).dtype == wanted
    with mixed_precision(torch.device("cpu"), precision):
        assert linear(x).dtype == wanted


def test_a_precision_without_a_row_is_no_fp32() -> None:
    with pytest.raises(KeyError, match="fp8"):
        mixed_precision("cpu", "fp8")
