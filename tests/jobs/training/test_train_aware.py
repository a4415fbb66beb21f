"""A last phase that knows of int8 changes nothing before it, resumes bit-equal, and leaves its ranges with the model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.export_run import ExportOptions, export_run
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch, Interrupted
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import QuantiseConfig, TrainRecipe, decisive
from eupe_pipeline.student.model.student import TargetSpec
from eupe_pipeline.student.quantised.aware import AwareEncoder, aware_identity
from eupe_pipeline.student.training.checkpoint import read_int8_ranges
from safetensors.torch import load_file

from ...student.gloo import on_ranks
from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses, run

pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[quantise]'")

AWARE = replace(RECIPE, quantise=QuantiseConfig(3), student=replace(RECIPE.student, sizes_px=(24, 40), ema=0.5))
PLAIN = replace(AWARE, quantise=QuantiseConfig())


@pytest.fixture(scope="module")
def runs(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training with its last three of eight steps aware of int8, and without."""
    folder = tmp_path_factory.mktemp("aware")
    run(tiny_store, AWARE, folder / "aware")
    run(tiny_store, PLAIN, folder / "plain")
    return folder / "aware", folder / "plain"


def weights(run_folder: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run_folder / part / "backbone.safetensors")


def test_before_the_phase_a_run_computes_what_it_did_without(runs: tuple[Path, Path]) -> None:
    aware, plain = map(losses, runs)
    assert aware[:5] == plain[:5]
    assert all(one != other and one == pytest.approx(other, rel=0.05) for one, other in zip(aware[5:], plain[5:], strict=True))


def test_a_run_without_the_phase_records_what_runs_of_before_it_did(runs: tuple[Path, Path]) -> None:
    recorded = json.loads((runs[1] / "recipe.json").read_text())
    assert "quantise" not in recorded["decisive"]
    assert "quantise" not in json.loads((runs[1] / "identities.json").read_text())
    assert not list(runs[1].rglob("int8-ranges*"))
    earlier = {key: value for key, value in PLAIN.to_dict().items() if key != "quantise"}
    assert decisive(earlier) == PLAIN.decisive()


def test_the_model_and_its_average_have_the_ranges_of_the_last_step(runs: tuple[Path, Path]) -> None:
    ranges = read_int8_ranges(runs[0] / "model")
    assert ranges is not None
    layers = [name for name, tensor in weights(runs[0]).items() if name.endswith("weight") and tensor.ndim in (2, 4)]
    assert {name.rpartition("/")[0] for name in ranges} == {f"encoder.{name}" for name in layers}
    assert all(least < largest for least, largest in ranges.values())
    average = read_int8_ranges(runs[0] / "average" / "model")
    assert average is not None
    assert all(torch.equal(average[name], ranges[name]) for name in ranges)


def test_the_phase_sees_the_deployed_students_values() -> None:
    """The input of the first layer is the picture itself: its range is the pixels', whatever the size."""
    student = initial_student(AWARE, {"t": TargetSpec(4, 4, (1, 1))})
    aware, generator = AwareEncoder(student.encoder, (24, 40)), torch.Generator().manual_seed(0)
    small, large = torch.rand(3, 3, 24, 24, generator=generator), 2 * torch.rand(1, 3, 40, 40, generator=generator)
    with torch.no_grad():
        tokens = aware(small)
        exact = student.encoder.eval()(small)
        assert torch.nn.functional.cosine_similarity(tokens.patch_BHWD, exact.patch_BHWD, dim=-1).min() > 0.995
        assert not torch.equal(tokens.patch_BHWD, exact.patch_BHWD)
        assert aware.state()["encoder.backbone.patch_embed.proj.weight/input"].tolist() == [small.min().item(), small.max().item()]
        aware(large)
    least, largest = aware.state()["encoder.backbone.patch_embed.proj.weight/input"].tolist()
    assert largest == pytest.approx(small.max().item() + 0.01 * (large.max().item() - small.max().item()))
    assert least == pytest.approx(small.min().item() + 0.01 * (large.min().item() - small.min().item()))


def need_equal(found: Path, whole: Path) -> None:
    assert losses(found) == losses(whole)
    for part in ("model", "average/model"):
        assert all(torch.equal(tensor, weights(whole, part)[name]) for name, tensor in weights(found, part).items())
        ours, theirs = read_int8_ranges(found / part), read_int8_ranges(whole / part)
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.fixture
def after_six(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The aware run as if it had been killed in its seventh step, the second of the phase."""
    killed = tmp_path / "killed"
    shutil.copytree(runs[0], killed)
    (killed / "summary.json").unlink()
    shutil.rmtree(killed / "checkpoints" / "step-0000008")
    return killed


def test_a_run_killed_within_the_phase_goes_on_bit_equal(runs: tuple[Path, Path], after_six: Path, tiny_store: Any) -> None:
    run(tiny_store, AWARE, after_six)
    need_equal(after_six, runs[0])


@pytest.mark.long
@pytest.mark.parametrize("stop", [4, 5, 6, 7])
def test_a_run_stopped_at_any_step_goes_on_bit_equal(runs: tuple[Path, Path], tiny_store: Any, tmp_path: Path, stop: int) -> None:
    with pytest.raises(Interrupted):
        run(tiny_store, AWARE, tmp_path / "run", on_event=interrupt_after(stop))
    assert (read_int8_ranges(tmp_path / "run" / "checkpoints" / f"step-{stop:07d}") is None) == (stop <= 5)
    run(tiny_store, AWARE, tmp_path / "run")
    need_equal(tmp_path / "run", runs[0])


def test_a_checkpoint_of_the_phase_without_its_ranges_is_refused(after_six: Path, tiny_store: Any) -> None:
    (after_six / "checkpoints" / "step-0000006" / "int8-ranges.safetensors").unlink()
    with pytest.raises(CacheDamaged, match="lacks the int8 ranges"):
        run(tiny_store, AWARE, after_six)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_goes_on_with_its_own_phase_alone(runs: tuple[Path, Path], tiny_store: Any, steps: int) -> None:
    with pytest.raises(CacheMismatch, match=r"quantise"):
        run(tiny_store, replace(AWARE, quantise=QuantiseConfig(steps)), runs[0])


@pytest.mark.long
def test_the_best_checkpoint_takes_its_own_ranges(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, quantise=QuantiseConfig(3), run=replace(RECIPE.run, keep_best=True, checkpoint_every=2, keep_checkpoints=8))
    best = run(tiny_store, recipe, tmp_path / "run")["best_step"]
    ranges = read_int8_ranges(tmp_path / "run" / "best" / "model")
    kept = read_int8_ranges(tmp_path / "run" / "checkpoints" / f"step-{best:07d}")
    assert (ranges is None) == (kept is None) == (best <= 5)
    if ranges is not None and kept is not None:
        assert all(torch.equal(kept[name], ranges[name]) for name in kept)


@pytest.mark.parametrize(("changes", "said"), [
    ({"quantise": {"bits": 4}}, r"quantise\.bits = 4 is out of range: expected 8"),
    ({"quantise": {"steps": 9}}, r"quantise\.steps = 9 is out of range: expected at most run\.steps = 8"),
    ({"quantise": {"steps": -1}}, r"quantise\.steps = -1"),
    ({"quantise": {"steps": 2}, "compile": True}, r"compile = True.*torch\.export"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        TrainRecipe(run=RECIPE.run, compile=changes.get("compile", False), quantise=QuantiseConfig(**changes["quantise"]))


def test_a_student_with_batch_norm_is_refused_before_anything_is_trained(tiny_store: Any, tmp_path: Path) -> None:
    student = replace(RECIPE.student, architecture="timm:test_resnet", options={}, sizes_px=(64,))
    with pytest.raises(BadInput, match=r"has batch norm.*--precision int8, which measures"):
        run(tiny_store, replace(RECIPE, student=student, quantise=QuantiseConfig(2)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_aware_run_is_exported_by_the_ranges_that_it_saw(runs: tuple[Path, Path], tmp_path: Path) -> None:
    written = export_run(ExportOptions(runs[0], tmp_path, ("onnx",), target="edge", precision="int8"))["written"]["onnx"]
    assert written["ranges"] == "of the run's last phase"
    assert min(written["cosine of the tokens"].values()) > 0.98


ONE_SIZE = replace(AWARE, student=replace(AWARE.student, sizes_px=(24,)))


def train_on_rank(ranks: Ranks, store: str, out: Path) -> None:
    train(ONE_SIZE, FeatureStore.open(store), ("tiny-teacher",), data="photos", out=out, ranks=ranks)


@pytest.mark.long
def test_two_ranks_share_their_ranges_and_go_on_as_two(tiny_store: Any, tmp_path: Path) -> None:
    on_ranks(2, tmp_path, train_on_rank, tiny_store.store.url, tmp_path / "two")
    run(tiny_store, ONE_SIZE, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
    of_two, of_one = (read_int8_ranges(tmp_path / name / "model") for name in ("two", "one"))
    assert of_two is not None
    assert of_one is not None
    for name in of_one:
        assert of_two[name].tolist() == pytest.approx(of_one[name].tolist(), rel=0.3, abs=0.1)  # the mean of two halves' extremes
    with pytest.raises(CacheMismatch, match="ranks"):
        run(tiny_store, ONE_SIZE, tmp_path / "two")


def test_whole_weights_are_needed_so_that_fsdp_is_refused() -> None:
    recipe = replace(AWARE, run=replace(AWARE.run, parallel="fsdp"))
    with pytest.raises(BadInput, match="'fsdp'; use 'ddp'"):
        aware_identity({"name": "vit-mini"}, recipe, Ranks(0, 2))
    assert aware_identity({"name": "vit-mini"}, recipe, Ranks(0, 1))["quantise"]["ranks"] == 1
    assert aware_identity({"name": "vit-mini"}, PLAIN, Ranks(0, 2)) == {}
