"""Training through Ray Train: two ranks compute what one does, a killed rank's group goes on by itself, errors keep their own text."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.ray_session import ray_session
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.jobs.training.ranks import train_on_workers
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics

from ..training_request import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Train's own

STEPS = 8
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (24,)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(STEPS, 6, checkpoint_every=3, log_every=1, reader_threads=1),
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_session(None, 4) as session:
        yield session


def on_ranks(tiny: Any, out: Path, recipe: TrainRecipe = RECIPE, *, workers: int = 2) -> TrainOptions:
    return TrainOptions(recipe, tiny.store.url, ("tiny-teacher",), out, "photos", workers=workers)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.fault(6, "recovered")
def test_a_killed_rank_costs_the_steps_since_the_checkpoint_and_two_ranks_train_what_one_does(
    ray: Any, tiny_store: Any, tmp_path: Path, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a relative folder: Ray Train runs its ranks in another one."""
    seen, remember = events
    monkeypatch.chdir(tmp_path)

    def kill_rank_1(event: dict[str, Any]) -> None:
        remember(event)
        if event["event"] == "step" and event["step"] == 1 and sum(one["event"] == "rank" for one in seen) == 2:
            os.kill(next(one["pid"] for one in seen if one["event"] == "rank" and one["rank"] == 1), signal.SIGKILL)

    calm = replace(RECIPE.optimizer, learning_rate=1e-3)  # at 1e-2 rounding grows to 0.5 within 100 steps
    recipe = replace(RECIPE, optimizer=calm, run=replace(RECIPE.run, steps=100, checkpoint_every=20))
    summary = train_on_workers(on_ranks(tiny_store, Path("two"), recipe), kill_rank_1)
    assert sum(one["event"] == "rank" for one in seen) == 4
    assert (summary["steps"], summary["ranks"]) == (100, 2)
    assert [line["step"] for line in read_metrics(tmp_path / "two")] == list(range(1, 101))
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "one")
    assert losses(tmp_path / "two")[:20] == pytest.approx(losses(tmp_path / "one")[:20], abs=5e-5)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)


@pytest.mark.long
@pytest.mark.parametrize(("workers", "way", "parts"), [(2, "fsdp", 1), (4, "ddp", 2), (4, "fsdp", 2)])
def test_ranks_train_what_one_process_trains(ray: Any, tiny_store: Any, tmp_path: Path, workers: int, way: str, parts: int) -> None:
    recipe = replace(RECIPE, run=replace(RECIPE.run, parallel=way, accumulate=parts))
    summary = train_on_workers(on_ranks(tiny_store, tmp_path / "run", recipe, workers=workers))
    train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "one")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    assert summary["ranks"] == workers
    assert train_on_workers(on_ranks(tiny_store, tmp_path / "run", recipe, workers=workers))["already"]


@pytest.mark.fault(7, "recovered")
@pytest.mark.long
def test_sigterm_stops_all_ranks_and_any_number_of_ranks_goes_on(ray: Any, tiny_store: Any, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    long = replace(RECIPE, run=replace(RECIPE.run, steps=2000, checkpoint_every=2000))
    with pytest.raises(Interrupted, match="stopped after step"):
        train_on_workers(on_ranks(tiny_store, tmp_path / "run", long), stop)
    assert 2 <= read_metrics(tmp_path / "run")[-1]["step"] < 2000
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.long
def test_an_error_on_purpose_keeps_its_text_and_is_not_tried_again(ray: Any, tiny_store: Any, tmp_path: Path) -> None:
    train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    other = replace(RECIPE, optimizer=replace(RECIPE.optimizer, learning_rate=0.02))
    with pytest.raises(CacheMismatch, match=r"optimizer.learning_rate: got 0.02, wanted 0.01"):
        train_on_workers(on_ranks(tiny_store, tmp_path / "run", other))


def test_more_ranks_than_images_in_a_batch_are_refused_at_once(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be shared by 7 ranks"):
        train_on_workers(on_ranks(tiny_store, tmp_path / "run", workers=7))
