"""Weights in several files beside an index: the same tensors as in one file, from a folder or a hub, and no part of them unseen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.teachers.checkpoints.sharded import weight_files, weights_in, weights_sha256
from eupe_pipeline.teachers.checkpoints.weights import check_format, read_weights, save_weights
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from torch import Tensor

from ..conftest import SMALL_VIT
from ..encoders.test_transformers_towers import save, small_model
from .test_hub import COMMIT, Hub, hub  # noqa: F401 - a fixture

INDEX = "model.safetensors.index.json"


def split(tensors: dict[str, Tensor], folder: Path, parts: int = 3, stem: str = "model") -> Path:
    """Write a checkpoint in parts with its index, as published ones are; returns the index."""
    place = {name: f"{stem}-{number % parts + 1:05}-of-{parts:05}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(place.values()):
        save_weights({name: tensor for name, tensor in tensors.items() if place[name] == file}, folder / file)
        data = (folder / file).read_bytes()  # transformers wants to be told who wrote a file
        size = int.from_bytes(data[:8], "little")
        header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": {"format": "pt"}}).encode()
        (folder / file).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": place}))
    return index


@pytest.fixture
def index(tmp_path: Path, small_vit_weights: Path) -> Path:
    return split(read_weights(small_vit_weights), tmp_path / "parts")


def tokens(weights: Path) -> Tensor:
    found: Tensor = load_teacher(resolve_teacher(f"timm:{SMALL_VIT}", weights=weights))(torch.from_numpy(canary_images(2, 160))).patch_BHWD
    return found


class TestOneTeacher:
    def test_its_tokens_are_those_of_one_file_by_index_or_by_folder(self, index: Path, small_vit_weights: Path) -> None:
        expected = tokens(small_vit_weights)
        assert torch.equal(tokens(index), expected)
        assert torch.equal(tokens(index.parent), expected)
        assert len(weight_files(index)) == 3

    def test_the_digest_covers_every_file_and_no_path(self, index: Path, tmp_path: Path) -> None:
        before = resolve_teacher(f"timm:{SMALL_VIT}", weights=index)
        moved = index.parent.rename(tmp_path / "moved")
        assert resolve_teacher(f"timm:{SMALL_VIT}", weights=moved / INDEX).identity() == before.identity()
        for file in (*weight_files(moved / INDEX), moved / INDEX):
            whole = file.read_bytes()
            file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:] if file.suffix == ".safetensors" else whole + b"\n")
            assert weights_sha256(moved / INDEX) != before.weights_sha256, file.name
            file.write_bytes(whole)
        assert weights_sha256(moved / INDEX) == before.weights_sha256

    def test_a_part_that_changes_after_it_was_resolved_is_refused(self, index: Path) -> None:
        spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=index)
        part = weight_files(index)[1]
        part.write_bytes(part.read_bytes()[:-1] + b"\x01")
        with pytest.raises(BadInput, match="changed since they were resolved"):
            load_teacher(spec)

    def test_a_named_teachers_parts_are_found_in_the_weights_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_vit_weights: Path
    ) -> None:
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
        index = split(read_weights(small_vit_weights), tmp_path / "weights", stem=SMALL_VIT)
        assert resolve_teacher(f"timm:{SMALL_VIT}").weights_path == index
        save_weights({"a": torch.zeros(1)}, tmp_path / "weights" / f"{SMALL_VIT}.safetensors")
        with pytest.raises(BadInput, match="which may differ"):
            resolve_teacher(f"timm:{SMALL_VIT}")

    def test_a_transformers_folder_may_be_in_parts(self, tmp_path: Path) -> None:
        whole, parts = (save(tmp_path / name, small_model("dinov2")) for name in ("whole", "parts"))
        split(read_weights(parts / "model.safetensors"), parts)
        (parts / "model.safetensors").unlink()
        found, expected = (load_teacher(resolve_teacher(f"hf:{folder}")) for folder in (parts, whole))
        pixels = torch.from_numpy(canary_images(2, 32))
        assert torch.equal(found(pixels).patch_BHWD, expected(pixels).patch_BHWD)
        assert digest(found.spec.identity()["architecture"]) == digest(expected.spec.identity()["architecture"])


class TestHub:
    def test_a_repository_in_parts_is_fetched_once(self, hub: Hub, index: Path, small_vit_weights: Path) -> None:  # noqa: F811
        hub.put("big/vit", index.parent)
        address = Path(f"hub:big/vit@{COMMIT}")
        spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=address)
        assert spec.identity() == resolve_teacher(f"timm:{SMALL_VIT}", weights=index).identity()
        assert torch.equal(tokens(address), tokens(small_vit_weights))
        before = len(hub.asked)
        assert resolve_teacher(f"timm:{SMALL_VIT}", weights=address) == spec
        assert len(hub.asked) == before

    def test_a_part_that_the_repository_lacks_is_named(self, hub: Hub, index: Path) -> None:  # noqa: F811
        hub.put("big/vit", index.parent)
        (hub.folder / "big" / "vit" / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(BadInput, match=r"lacks one of .*model-00002-of-00003\.safetensors"):
            resolve_teacher(f"timm:{SMALL_VIT}", weights=Path(f"hub:big/vit@{COMMIT}"))

    def test_a_transformers_model_in_parts_comes_whole(self, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
        local = save(tmp_path / "dino", small_model("dinov3_vit"))
        split(read_weights(local / "model.safetensors"), local)
        (local / "model.safetensors").unlink()
        (local / "preprocessor_config.json").rename(local / "processor_config.json")  # the newer name
        record = json.loads((local / "processor_config.json").read_text())
        (local / "processor_config.json").write_text(json.dumps({"image_processor": record, "processor_class": "Processor"}))
        hub.put("meta/dino", local)
        spec = resolve_teacher(f"hf:meta/dino@{COMMIT}")
        assert spec.identity() == resolve_teacher(f"hf:{local}").identity()
        assert spec.preprocessing.mean == (0.5, 0.5, 0.5)
        before = len(hub.asked)
        load_teacher(resolve_teacher(f"hf:meta/dino@{COMMIT}"))
        assert len(hub.asked) == before


def _edit(index: Path, change: Callable[[dict[str, str]], None]) -> None:
    record = json.loads(index.read_text())
    change(record["weight_map"])
    index.write_text(json.dumps(record))


def _add(index: Path, part: int, **tensors: Tensor) -> None:
    file = weight_files(index)[part]
    save_weights({**read_weights(file), **tensors}, file)


def _missing_part(index: Path) -> None:
    weight_files(index)[1].unlink()


def _absent_tensor(index: Path) -> None:
    _edit(index, lambda place: place.update({"blocks.9.norm.weight": place["cls_token"]}))


def _tensor_elsewhere(index: Path) -> None:
    _edit(index, lambda place: place.update(cls_token=next(file for file in place.values() if file != place["cls_token"])))


def _tensor_twice(index: Path) -> None:
    tensors = read_weights(index)
    place = json.loads(index.read_text())["weight_map"]
    other = next(number for number, file in enumerate(weight_files(index)) if file.name != place["cls_token"])
    _add(index, other, cls_token=tensors["cls_token"] + 1)


@pytest.mark.parametrize(("damage", "says"), [
    (_missing_part, r"names 3 weight files, of which 1 are not beside it \(model-00002-of-00003\.safetensors\)"),
    (_absent_tensor, r"1 are not in the file that it names \(blocks\.9\.norm\.weight: model-0000\d-of-00003\.safetensors\)"),
    (_tensor_elsewhere, r"1 are not in the file that it names \(cls_token: model-0000\d-of-00003"),
    (_tensor_twice, r"1 tensors are in several files \(cls_token: model-0000\d-of-00003\.safetensors and model-0000\d"),
    (lambda index: _add(index, 0, stray=torch.zeros(1)), r"1 are in a file and not in the index \(stray: model-00001-of-00003"),
    (lambda index: weight_files(index)[2].write_bytes(b"nothing"), r"model-00003-of-00003\.safetensors is not a safetensors file"),
    (lambda index: index.write_text("{}"), r"is not the index of a checkpoint in several files .*lacks a weight_map"),
    (lambda index: index.write_text('{"weight_map": []}'), "is not the index of a checkpoint"),
    (lambda index: index.write_text('{"weight_map": {}}'), "names 'no weight file'"),
    (lambda index: _edit(index, lambda place: place.update(cls_token="../other.safetensors")), r"names '\.\./other\.safetensors'"),
    (lambda index: index.unlink(), "is missing|are missing"),
])  # fmt: skip
def test_each_disagreement_is_an_error_that_names_it_before_anything_is_built(
    index: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(index)
    with pytest.raises(BadInput, match=says):
        resolve_teacher(f"timm:{SMALL_VIT}", weights=index)


def test_both_kinds_in_one_folder_are_refused(index: Path) -> None:
    save_weights({"a": torch.zeros(1)}, index.parent / "model.safetensors")
    with pytest.raises(BadInput, match="which may differ"):
        weights_in(index.parent)


def test_an_index_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    for read in (check_format, read_weights, weights_sha256):
        with pytest.raises(BadInput, match="is not there"):
            read(tmp_path / INDEX)
