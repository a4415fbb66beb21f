"""The table of student families: every row is complete, and every name leads to the row of its own record."""

import json
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.architectures import ARCHITECTURES, TIMM_STUDENT
from eupe_pipeline.teachers.encoders.build import FAMILIES, ROWS, build_encoder, canonical, facts, try_sizes
from eupe_pipeline.teachers.encoders.encoder import Encoder

SMALL = {"vit": "vit-mini", "convnext": "convnext-mini", TIMM_STUDENT: "timm:test_vit"}


def test_every_family_has_a_small_student_to_be_tried_with() -> None:
    assert set(SMALL) == set(ROWS)
    assert {full["name"] for full in ARCHITECTURES.values()} <= set(ROWS)


@pytest.mark.parametrize("family", sorted(ROWS))
class TestRow:
    def test_its_record_is_json_names_the_family_and_reads_back(self, family: str) -> None:
        full = canonical(SMALL[family])
        assert full["name"] == family
        assert canonical(json.loads(json.dumps(full))) == full

    def test_its_encoder_is_what_its_facts_say(self, family: str) -> None:
        width, stride_px, cls = facts(SMALL[family])
        with torch.device("meta"):
            encoder = build_encoder(SMALL[family])
            cls_BD, patch_BHWD = encoder(torch.empty(2, 3, 5 * stride_px, 4 * stride_px))
        assert isinstance(encoder, Encoder)
        assert (encoder.width, encoder.stride_px, encoder.cls, encoder.training) == (width, stride_px, cls, True)
        assert (cls_BD.shape, patch_BHWD.shape) == ((2, width), (2, 5, 4, width))

    def test_a_size_off_its_stride_is_refused_and_others_are_not(self, family: str) -> None:
        stride_px = facts(SMALL[family]).stride_px
        try_sizes(SMALL[family], [2 * stride_px])
        with pytest.raises(BadInput):
            try_sizes(SMALL[family], [2 * stride_px + 1])


def test_a_family_that_writes_another_familys_name_into_its_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    liar: Any = ROWS["vit"]._replace(read=lambda name, changes: {"name": "convnext"})
    monkeypatch.setitem(FAMILIES.ours, "vit", liar)
    with pytest.raises(BadInput, match="gives a record of the name 'convnext', which is another family's"):
        canonical("vit-mini")
