import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.cache_home import weights_folder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.teachers.checkpoints.weights import load_strictly, read_weights, save_weights
from torch import nn


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(2, 3)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def test_weights_go_to_disk_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "linear.safetensors"
    save_weights(linear(2.0).state_dict(), path)
    layer = linear(0.0)
    load_strictly(layer, path)
    assert torch.equal(layer.weight, linear(2.0).weight)


def test_equal_tensors_give_equal_bytes_whatever_their_order_in_memory(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_weights({"a": weight, "b": weight + 1}, tmp_path / "1")
    save_weights({"b": weight + 1, "a": weight.T.contiguous().T}, tmp_path / "2")
    assert file_sha256(tmp_path / "1") == file_sha256(tmp_path / "2")


def test_a_refused_file_changes_nothing_in_the_module(tmp_path: Path) -> None:
    save_weights({"weight": torch.ones(3, 2)}, tmp_path / "half")
    layer = linear(5.0)
    with pytest.raises(BadInput, match=r"1 missing \(bias\)"):
        load_strictly(layer, tmp_path / "half")
    assert torch.equal(layer.weight, linear(5.0).weight)


def test_every_disagreement_is_named_in_one_message_and_long_lists_are_cut(tmp_path: Path) -> None:
    extra = {f"extra.{index}": torch.zeros(1) for index in range(9)}
    save_weights({"weight": torch.ones(2, 2), **extra}, tmp_path / "odd")
    with pytest.raises(BadInput) as caught:
        load_strictly(linear(0.0), tmp_path / "odd")
    message = str(caught.value)
    assert "1 missing (bias)" in message
    assert "9 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4 and 4 more)" in message
    assert "1 of another shape (weight)" in message


@pytest.mark.fault(19, "detected")
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.save(linear(0.0).state_dict(), tmp_path / "model.pth")
    with pytest.raises(BadInput, match=r"convert-weights .*model\.pth --out .*model\.safetensors"):
        read_weights(tmp_path / "model.pth")


def claiming(header: Mapping[str, object], data: bytes = bytes(8)) -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


LIES: list[Mapping[str, object]] = [
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "pickle", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
]


@pytest.mark.fault(19, "detected")
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", *(claiming(lie) for lie in LIES)])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(BadInput, match="not a safetensors file"):
        read_weights(tmp_path / "bad")


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not there"):
        read_weights(tmp_path / "none")
    with pytest.raises(BadInput):
        read_weights(tmp_path)


def test_the_weights_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "weights"
    monkeypatch.delenv("EUPE_PIPELINE_HOME")
    assert weights_folder() == Path.home() / ".cache" / "eupe-pipeline" / "weights"
