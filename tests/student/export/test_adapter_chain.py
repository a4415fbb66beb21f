"""Adapters leave with their statistics, and the chain through the proxy ends in a teacher's own space."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.student.export.adapter_chain import AdapterChain, write_chain
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.model.student import Student, TargetSpec, TeacherHeads
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens
from numpy.typing import NDArray
from safetensors.torch import save_file

from ...conftest import TinyStore


def run_of(folder: Path, tiny: TinyStore, width: int, seed: int, weights_sha256: str = "") -> tuple[Path, Student]:
    """A student taught by the tiny store's teacher."""
    torch.manual_seed(seed)
    reader = tiny.features()
    spec = TargetSpec(reader.cls_dim, reader.patch_dim, (2, 2))
    student = Student(build_encoder({"name": "vit-mini", "width": width, "layer_scale": 1.0}), 8, {reader.name: spec})
    save_model(student, folder / "model", size_px=16, targets={reader.name: reader.statistics.digest})
    target = {"identity": {"teacher": {"weights_sha256": weights_sha256}}}
    (folder / "identities.json").write_text(json.dumps({"targets": {reader.name: target}}))
    return folder, student


def covariance_of(samples: NDArray[np.float64]) -> Covariance:
    covariance = Covariance(samples.shape[1])
    covariance.update(samples.astype(np.float32))
    return covariance


def by_hand(student: Student, tokens: Tokens, tiny: TinyStore) -> Tokens:
    statistics = tiny.features().statistics
    with torch.no_grad():
        cls_BD, patch_BHWD = student.adapters[0](tokens)
    return Tokens(
        torch.from_numpy(statistics.denormalize_cls(cls_BD.numpy())), torch.from_numpy(statistics.denormalize_patch(patch_BHWD.numpy()))
    )


def tokens(width: int) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    return Tokens(torch.randn(3, width, generator=generator), torch.randn(3, 2, 2, width, generator=generator))


def assert_same(one: Tokens, other: Tokens) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_one_step_gives_what_adapter_and_statistics_give_by_hand(tiny_store: TinyStore, tmp_path: Path) -> None:
    run, student = run_of(tmp_path / "run", tiny_store, 48, 1)
    export(ExportOptions(run, tmp_path / "out", ("timm",), adapters=True, store=tiny_store.store.url))
    chain = AdapterChain(tmp_path / "out" / "timm" / "adapters")
    assert chain.teachers() == ["tiny-teacher"]
    assert_same(chain.map(tokens(48), "tiny-teacher"), by_hand(student, tokens(48), tiny_store))
    assert "adapters/adapters.safetensors" in (tmp_path / "out" / "timm" / "SHA256SUMS").read_text()
    with pytest.raises(BadInput, match="only to: tiny-teacher"):
        chain.map(tokens(48), "pecore-g")


def test_the_way_through_the_proxy_is_both_steps_one_after_the_other(tiny_store: TinyStore, tmp_path: Path) -> None:
    reader = tiny_store.features()
    proxy, proxy_student = run_of(tmp_path / "proxy", tiny_store, int(reader.cls_dim or 0), 2)
    run, student = run_of(tmp_path / "run", tiny_store, 48, 3, file_sha256(proxy / "model" / "backbone.safetensors"))
    chain_folder = tmp_path / "chain"
    chain_folder.mkdir()
    described = write_chain(run, proxy, tiny_store.store, chain_folder)
    assert described["through"] == "tiny-teacher"
    chain = AdapterChain(chain_folder)
    chain.steps[0] = ["the proxy"]  # the tiny store has one teacher: only its name in step 0 tells proxy and teacher apart
    chain.through = "the proxy"
    wanted = by_hand(proxy_student, by_hand(student, tokens(48), tiny_store), tiny_store)
    assert_same(chain.map(tokens(48), "tiny-teacher"), wanted)


def test_phi_s_is_undone_by_its_matrix(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    statistics = Statistics.from_covariances(None, covariance_of(generator.normal(size=(200, 4)) @ generator.normal(size=(4, 4))), 200)
    heads = TeacherHeads(48, 8, TargetSpec(None, 4, (1, 1)))
    weights = {f"0/0/{name}": tensor for name, tensor in heads.state_dict().items()}
    arrays = {f"0/0/statistics/{name}": torch.from_numpy(values.copy()) for name, values in statistics.arrays().items()}
    save_file({**weights, **arrays}, tmp_path / "adapters.safetensors")
    (tmp_path / "chain.json").write_text(json.dumps({"steps": [{"run": "run", "teachers": ["t"]}], "through": None}))
    found = AdapterChain(tmp_path).map(tokens(48), "t").patch_BHWD
    with torch.no_grad():
        wanted = heads(tokens(48)).patch_BHWD
    torch.testing.assert_close(torch.from_numpy(statistics.normalize_patch(found.numpy())), wanted, atol=1e-4, rtol=1e-4)


def test_a_store_without_the_statistics_and_a_strange_proxy_are_refused(tiny_store: TinyStore, tmp_path: Path) -> None:
    run, _ = run_of(tmp_path / "run", tiny_store, 48, 1)
    record = json.loads((run / "model" / "adapters.json").read_text())
    record["teachers"]["tiny-teacher"]["statistics"] = "0" * 64
    other, _ = run_of(tmp_path / "other", tiny_store, 48, 4)
    with pytest.raises(CacheMismatch, match="is not the proxy"):
        write_chain(run, other, tiny_store.store, tmp_path)
    (run / "model" / "adapters.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="with the statistics 000000000000"):
        write_chain(run, None, tiny_store.store, tmp_path)
