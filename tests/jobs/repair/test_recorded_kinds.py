"""Each further kind of teacher is built again from what a feature set recorded of it, and another file in its place is refused by field."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.repair.recorded_teacher import recorded_teacher
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights
from eupe_pipeline.teachers.encoders.frozen import build_timm, inspect_timm
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import ROWS

from ...teachers.checkpoints.test_sharded import split
from ...teachers.encoders.test_transformers_towers import save, small_model, with_format
from ...teachers.onnx_files import declare, small_graph
from ...teachers.published_layouts import SMALL_DUNE, SMALL_RADIO, dune_tensors, radio_tensors, small_row
from .test_recorded_teacher import TIMM, set_with

Place = tuple[str, Path | None, Path]  # how it is named, its weights, and a file of tensors that is part of it


def _published(name: str, tensors: Callable[[], dict[str, torch.Tensor]], folder: Path) -> Place:
    path = folder / f"{name}.safetensors"
    save_weights(tensors(), path)
    return name, path, path


def _parts(folder: Path) -> Place:
    torch.manual_seed(4)
    index = split(build_timm(inspect_timm(TIMM[5:]).architecture).backbone.state_dict(), folder / "parts")
    return TIMM, index, index.parent / "model-00002-of-00003.safetensors"


def _tower(kind: str, folder: Path) -> Place:
    model = save(folder / kind, small_model(kind))
    return f"hf:{model}", None, model / "model.safetensors"


def _graph(folder: Path) -> Place:
    path = small_graph(folder / "net.onnx")
    return declare(path, input=None, patch_output="grid", cls="none", cls_output=None), None, path


KINDS: dict[str, Callable[[Path], Place]] = {
    "in parts": _parts, "radio": lambda folder: _published("radio-small", radio_tensors, folder),
    "dune": lambda folder: _published("dune-small", dune_tensors, folder), "hf radio": lambda folder: _tower("radio", folder),
    "hf sam3": lambda folder: _tower("sam3_vit_model", folder), "onnx": _graph,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "radio-small", small_row("radio-small", SMALL_RADIO))
    monkeypatch.setitem(ROWS, "dune-small", small_row("dune-small", SMALL_DUNE))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_teacher_again_and_another_file_is_refused(tiny_store: Any, tmp_path: Path, kind: str) -> None:
    name, weights, part = KINDS[kind](tmp_path)
    size_px = 48 if name == TIMM else 40
    spec = resolve_teacher(name, weights=weights, size_px=size_px, constants="imagenet")
    reader = set_with(tiny_store, FeatureStore.create(str(tmp_path / "store")), spec, spec.identity())
    again = recorded_teacher(reader, name, weights)
    assert again.identity() == spec.identity()
    pixels = torch.from_numpy(canary_images(2, size_px))
    assert torch.equal(load_teacher(again)(pixels).patch_BHWD, load_teacher(spec)(pixels).patch_BHWD)
    if part.suffix == ".onnx":
        small_graph(part, batch=3)
    else:
        tensors = read_weights(part)
        changed = next(key for key, tensor in tensors.items() if tensor.is_floating_point() and "norm_" not in key)
        save_weights({**tensors, changed: tensors[changed] + 1}, part)
        part.write_bytes(with_format(part.read_bytes()))
    with pytest.raises(CacheMismatch, match=r"weights_sha256: got |sha256 .*, wanted"):
        recorded_teacher(reader, name, weights)
