"""A real training that stops because its loss is not finite leaves that step behind, and `runs replay` computes it again to the bit."""

import json
import math
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.replay import replay_step
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.training.checkpoint import list_checkpoints
from eupe_pipeline.student.training.learner import TrainingDiverged
from eupe_pipeline.student.training.run_folder import read_metrics

from ...jobs.training_request import train
from ...student.gloo import on_ranks

RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"layer_scale": 0.5}, (24,), ema=0.9, drop_path=0.2),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(4, 6, checkpoint_every=2, log_every=1, reader_threads=1, accumulate=2),
)
POISONED = "encoder.backbone.blocks.0.mlp.fc1"
STEP_3 = "nonfinite/step-0000003"


def run(store: FeatureStore, out: Path, recipe: TrainRecipe = RECIPE, features: str = "tiny-int8", **more: Any) -> dict[str, Any]:
    return train(recipe, store, (features,), data="photos", out=out, **more)


def poison(checkpoint: Path, name: str = f"{POISONED}.weight") -> None:
    """Make one weight of a checkpoint infinite, as a damaged memory would."""
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    tensors[name].view(-1)[0] = math.inf
    safetensors.torch.save_file(tensors, checkpoint / "model.safetensors")


def half_done(store: FeatureStore, out: Path, recipe: TrainRecipe = RECIPE, **more: Any) -> None:
    """Train to the checkpoint of step 2 and break off."""

    def break_off(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(store, out, recipe, on_event=break_off, **more)


@pytest.fixture(scope="module")
def poisoned(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint of step 2 has an infinite weight; tests copy it."""
    out = tmp_path_factory.mktemp("poisoned") / "run"
    half_done(tiny_store.store, out)
    poison(out / "checkpoints" / "step-0000002")
    return out


@pytest.fixture
def out(poisoned: Path, tmp_path: Path) -> Path:
    shutil.copytree(poisoned, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exploded(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that its learning rate blew up, and its error."""
    out = tmp_path_factory.mktemp("exploded") / "run"
    wild = replace(RECIPE, optimizer=OptimizerConfig(learning_rate=9.0, weight_decay=9.0, clip_norm=0.0, warmup_share=0.1))
    wild = replace(wild, run=replace(RECIPE.run, steps=400, checkpoint_every=400))
    with pytest.raises(TrainingDiverged) as error:
        run(tiny_store.store, out, wild, "tiny-teacher")
    return out, str(error.value)


def test_a_run_that_its_learning_rate_blew_up_is_computed_again_to_the_bit(exploded: tuple[Path, str]) -> None:
    out, text = exploded
    (kept,) = (out / "nonfinite").iterdir()
    last = read_metrics(out)[-1]["step"]
    assert kept.name == f"step-{last + 1:07d}"
    size = sum(path.stat().st_size for path in kept.iterdir())
    total = json.loads((kept / "bundle.json").read_text())["bytes"]
    assert f"is kept in {kept} ({total:,} bytes): `eupe-pipeline runs replay {kept}`" in text
    assert total <= size <= total + 60_000
    found = replay_step(folder=kept)
    assert found["equal"] is True
    assert f"is {found['seen']['loss']} at step {found['step']}" in text or f"is {found['seen']['norm of the gradient']} at" in text
    assert found["loss"] == found["seen"]["loss"]
    assert {"cls", "patch"} == set(found["losses"]["tiny-teacher"])
    assert found["first_module_not_finite"] or found["first_gradient_not_finite"]
    assert found["targets_not_finite"] == {}


def test_the_module_with_the_infinite_weight_is_named_with_its_images_and_micro_batch(tiny_store: Any, out: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3; the weights were not changed .*/nonfinite/step-0000003 \("):
        run(tiny_store.store, out)
    found = replay_step(folder=out)  # the run's folder will do
    assert (found["equal"], found["loss"], found["step"], found["images"]) == (True, "nan", 3, 6)
    module = found["first_module_not_finite"]
    assert (module["module"], module["kind"], module["rank"], module["micro_batch"]) == (POISONED, "Linear", 0, 0)
    assert module["input_is_finite"] is True
    assert len(module["images"]) == 3  # of the first of two micro-batches
    assert all(name.startswith("class") for name in module["images"])
    assert found["weights_not_finite"] == [f"{POISONED}.weight"]


def test_a_bundle_alone_is_enough_and_the_store_may_be_gone(tiny_store: Any, out: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store.store.url, store)
    with pytest.raises(TrainingDiverged):
        run(FeatureStore.open(str(store)), out)
    moved = tmp_path / "elsewhere"
    (out / STEP_3).rename(moved)
    shutil.rmtree(store)
    shutil.rmtree(out)
    assert replay_step(folder=moved)["equal"] is True


def test_losses_that_are_finite_are_equal_to_the_bit_as_well(tiny_store: Any, tmp_path: Path) -> None:
    """With one adapter poisoned, the other's loss is what a run without poison logs at that step."""
    half_done(tiny_store.store, tmp_path / "run")
    run(tiny_store.store, tmp_path / "whole")
    poison(tmp_path / "run" / "checkpoints" / "step-0000002", "adapters.tiny-int8.cls.0.weight")
    with pytest.raises(TrainingDiverged):
        run(tiny_store.store, tmp_path / "run")
    found = replay_step(folder=tmp_path / "run")
    (logged,) = [line for line in read_metrics(tmp_path / "whole") if line["step"] == 3]
    ((teacher, terms),) = found["losses"].items()
    assert terms["cls"] == "nan"
    assert terms["patch"] == logged["losses"][teacher]["patch"]
    assert found["equal"] is True


def test_only_the_first_step_is_kept_and_a_run_begun_anew_starts_without_it(tiny_store: Any, out: Path) -> None:
    with pytest.raises(TrainingDiverged):
        run(tiny_store.store, out)
    before = {path.name: path.stat().st_mtime_ns for path in (out / STEP_3).iterdir()}
    with pytest.raises(TrainingDiverged, match=r"first step of this run that was not finite is kept in .*step-0000003: `eupe"):
        run(tiny_store.store, out)
    assert {path.name: path.stat().st_mtime_ns for path in (out / STEP_3).iterdir()} == before
    assert [path.name for path in (out / "nonfinite").iterdir()] == ["step-0000003"]
    shutil.rmtree(out / "checkpoints")
    (out / "metrics.jsonl").unlink()
    run(tiny_store.store, out)
    assert not (out / "nonfinite").exists()


def test_of_several_students_the_one_that_was_not_finite_is_kept(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, student=StudentConfig(sizes_px=(32,)))
    students = ("convnext-mini", "vit-mini")
    half_done(tiny_store.store, tmp_path / "run", recipe, students=students)
    for name in students:  # the break-off may leave one behind the other
        assert list_checkpoints(tmp_path / "run" / name / "checkpoints")
    poison(tmp_path / "run" / "vit-mini" / "checkpoints" / "step-0000002")
    with pytest.raises(TrainingDiverged):
        run(tiny_store.store, tmp_path / "run", recipe, students=students)
    assert not (tmp_path / "run" / "convnext-mini" / "nonfinite").exists()
    found = replay_step(folder=tmp_path / "run" / "vit-mini")
    assert (found["equal"], found["student"], found["first_module_not_finite"]["module"]) == (True, "vit-mini", POISONED)


def diverge(ranks: Ranks, store: str, out: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"nonfinite/step-0000003 \("):
        run(FeatureStore.open(store), out, ranks=ranks)


@pytest.mark.long
def test_two_ranks_keep_their_parts_and_are_computed_one_after_another(tiny_store: Any, out: Path, tmp_path: Path) -> None:
    on_ranks(2, tmp_path, diverge, tiny_store.store.url, out)
    assert {path.name for path in (out / STEP_3).glob("rank-*")} == {"rank-0.safetensors", "rank-1.safetensors"}
    found = replay_step(folder=out)
    assert (found["equal"], found["ranks"], found["images"], found["loss"]) == (True, 2, 6, "nan")
    (out / STEP_3 / "rank-1.safetensors").unlink()
    with pytest.raises(CacheDamaged, match=r"rank-1\.safetensors cannot be read"):
        replay_step(folder=out)


def test_live_targets_are_kept_as_they_were(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, teacher=TeacherConfig("live", (16, 32)))
    live = {"features": "tiny-teacher", "proxy": tiny_store.teacher_run}
    half_done(tiny_store.store, tmp_path / "run", recipe, **live)
    poison(tmp_path / "run" / "checkpoints" / "step-0000002")
    with pytest.raises(TrainingDiverged):
        run(tiny_store.store, tmp_path / "run", recipe, **live)
    found = replay_step(folder=tmp_path / "run")
    assert (found["equal"], found["targets_not_finite"]) == (True, {})


def test_sampled_targets_are_kept_with_their_places(tiny_store: Any, tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    request = TeacherRequest(str(tiny_store.teacher_run), size_px=32)
    views = ViewSpec(views_per_image=1, seed=3)
    extract_features(ExtractOptions(store.url, "photos", (request,), views, 8, "fp16", tokens_per_view=6, statistics_batches=1, workers=0))
    recipe = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(32,)))
    half_done(store, tmp_path / "run", recipe, features="teacher")
    poison(tmp_path / "run" / "checkpoints" / "step-0000002")
    with pytest.raises(TrainingDiverged):
        run(store, tmp_path / "run", recipe, features="teacher")
    assert replay_step(folder=tmp_path / "run")["equal"] is True


class TestNoRoom:
    @pytest.fixture
    def small_files(self) -> Iterator[Any]:
        """Returns what makes every larger file of this process fail as a full disk does, until the test ends."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_a_disk_that_takes_no_more_hides_neither_the_loss_nor_what_is_lost(self, tiny_store: Any, out: Path, small_files: Any) -> None:
        shutil.copytree(out / "checkpoints" / "step-0000002", out / "kept")
        with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3") as error:
            run(tiny_store.store, out, on_event=lambda event: small_files() if event["event"] == "start" else None)
        assert "What this step was computed from could not be kept: cannot write" in str(error.value)
        assert "No checkpoint of the step before could be written: cannot write" in str(error.value)
        assert not list((out / "nonfinite").iterdir())
        assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-0000002"]

    def test_a_bundle_that_would_fill_the_disk_is_not_written(self, tiny_store: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(out)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
        with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3.*it takes [\d,]+ bytes, and of the 100,000 that are free"):
            run(tiny_store.store, out)
        assert not list((out / "nonfinite").iterdir())


class TestCommand:
    def test_it_prints_what_was_found(self, exploded: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = exploded
        assert main(["runs", "replay", str(out), "--device", "cpu", "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=lambda word: pytest.fail(word))
        assert found["equal"] is True

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["{tmp}/nothing"], "holds no step that was not finite"),
            (["{tmp}"], "holds no step that was not finite (no bundle.json): give RUN/nonfinite/step-N"),
            (["{out}", "--device", "gpu"], "'gpu' is not one of 'cpu', 'cuda'"),
            (["{out}", "--device", "cuda"], "CUDA"),
        ],
    )
    def test_what_a_newcomer_gets_wrong(
        self, exploded: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
    ) -> None:
        if words[-1] == "cuda" and torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
        assert main(["runs", "replay", *(word.format(tmp=tmp_path, out=exploded[0]) for word in words)]) == 2
        assert text in capsys.readouterr().err

    def test_damage_is_said(self, exploded: tuple[Path, str], tmp_path: Path) -> None:
        (kept,) = (exploded[0] / "nonfinite").iterdir()
        for name, content in (("bundle.json", b"{"), ("rank-0.safetensors", b"short"), ("model.safetensors", b"")):
            copy = tmp_path / name
            shutil.copytree(kept, copy)
            (copy / name).write_bytes(content)
            with pytest.raises(CacheDamaged):
                replay_step(folder=copy)
        (kept_of_later,) = [shutil.copytree(kept, tmp_path / "later")]
        (kept_of_later / "bundle.json").write_text(json.dumps({"format": 2}))
        with pytest.raises(BadInput, match="has format 2, this version reads format 1"):
            replay_step(folder=kept_of_later)
