"""Latency: every runtime of a folder once, threads as asked for and put back, FLOPs against arithmetic by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.student.export import latency as latency_module
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.latency import LatencyOptions, count_gflops, latency, measure
from eupe_pipeline.student.export.runtimes import CannotRunHere, Runner
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import Tokens

from .test_export import make_run

QUICK = LatencyOptions(Path("exported"), warmup=1, calls=3, runtimes=("eager", "onnxruntime"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latency")
    export(ExportOptions(make_run(out / "run", {"name": "vit-mini", "depth": 1}, 32), out / "exported", ("timm", "onnx")))
    return out / "exported"


def test_each_runtime_has_a_median_and_a_95th_percentile(folder: Path) -> None:
    before = torch.get_num_threads()
    found = latency(replace(QUICK, folder=folder))
    assert list(found["runtimes"]) == ["eager", "onnxruntime"]
    assert all(0 < one["median_ms"] <= one["p95_ms"] for one in found["runtimes"].values())
    assert (found["threads"], found["input"], found["paper_iphone_ms"]) == (1, "1x3x32x32", None)
    assert torch.get_num_threads() == before


def test_a_runtime_without_its_file_and_an_unknown_one_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="holds nothing for the runtime executorch fp32"):
        latency(LatencyOptions(folder, runtimes=("executorch fp32",), calls=1))
    with pytest.raises(BadInput, match="did you mean 'onnxruntime'"):
        LatencyOptions(Path(), runtimes=("onxruntime",))
    with pytest.raises(BadInput, match="at least 1"):
        LatencyOptions(Path(), calls=0)


def test_a_runtime_that_is_not_installed_is_left_out_with_a_note_unless_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(encoder: object, folder: Path, threads: int) -> Runner:
        raise CannotRunHere("openvino is not installed")

    monkeypatch.setattr(latency_module, "RUNTIMES", {"openvino": absent, "eager": latency_module.RUNTIMES["eager"]})
    notes: list[str] = []
    found = latency(LatencyOptions(folder, calls=1, warmup=0), lambda event: notes.append(str(event.get("text"))))
    assert list(found["runtimes"]) == ["eager", "onnxruntime"]
    assert "openvino is left out: openvino is not installed" in notes
    with pytest.raises(BadInput, match="openvino is not installed"):
        latency(LatencyOptions(folder, calls=1, warmup=0, runtimes=("openvino",)))


def test_a_folder_that_is_no_export_or_of_two_students_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not the folder of an export"):
        latency(replace(QUICK, folder=tmp_path))
    for name, digest in (("timm", "a"), ("onnx", "b")):
        record = json.loads((folder / name / "export.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "export.json").write_text(json.dumps({**record, "weights_sha256": digest}))
    with pytest.raises(CacheMismatch, match="different students"):
        latency(replace(QUICK, folder=tmp_path))


def test_warm_up_calls_do_not_count() -> None:
    calls: list[int] = []

    def run(pixels_BCHW: torch.Tensor) -> Tokens:
        calls.append(1)
        return Tokens(None, pixels_BCHW)

    measure(run, torch.zeros(1), LatencyOptions(Path(), warmup=4, calls=6))
    assert len(calls) == 10


def test_flops_are_two_for_each_multiplication_of_a_vits_matrices() -> None:
    encoder = build_encoder({"name": "vit-mini", "depth": 1})
    tokens, width = 4 * 4 + 5, 48
    embed = 16 * width * 3 * 8 * 8
    block = tokens * 12 * width * width + 2 * tokens * tokens * width
    assert count_gflops(encoder, 32) * 1e9 == 2 * (embed + block)
