"""Every codec of the table keeps the contract, and the table has exactly the codecs that the command line offers."""

import dataclasses

import numpy as np
import pytest
from eupe_pipeline.storage.core import choices
from eupe_pipeline.storage.features.codec import CODECS, TokenCodec
from eupe_pipeline.student.data.codec_contract import CodecContract


class TestEveryCodec(CodecContract):
    @pytest.fixture(autouse=True, params=CODECS.values(), ids=list(CODECS))
    def each_of_the_table(self, request: pytest.FixtureRequest) -> None:
        self.codec = request.param


def test_the_table_has_the_codecs_that_are_offered() -> None:
    assert tuple(CODECS) == choices.CODECS
    assert all(row.name == name and row.about for name, row in CODECS.items())


def test_a_codec_without_a_twin_for_the_device_cannot_be_made() -> None:
    required = {one.name for one in dataclasses.fields(TokenCodec) if one.default is one.default_factory}  # both are MISSING
    assert {"decode_view", "decode_tensors", "code_dtype"} <= required


def test_a_twin_that_decodes_otherwise_breaks_the_contract() -> None:
    wrong = CodecContract()
    wrong.codec = dataclasses.replace(CODECS["int8"], decode_tensors=CODECS["fp16"].decode_tensors)
    with pytest.raises(AssertionError):
        wrong.test_the_twin_decodes_on_the_device_what_the_decoder_does()


@pytest.mark.parametrize(("codec", "token_bytes"), [("fp32", 5120), ("fp16", 2560), ("int8", 1300), ("int4", 720)])
def test_a_token_of_1280_channels_takes_the_bytes_that_are_documented(codec: str, token_bytes: int) -> None:
    encoded = CODECS[codec].encode(np.zeros((1, 1, 1, 1280), np.float32))
    assert sum(part.nbytes for part in encoded if part is not None) == token_bytes
