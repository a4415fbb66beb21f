"""`train --track`: a real training, and the process that feeds a tracker; its client is a stand-in that notes what it gets or fails."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.training import launch
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, Interrupted
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training import tracking
from eupe_pipeline.student.training.run_folder import read_metrics

RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1}, (24,)),
    adapter=AdapterConfig(16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_share=0.1),
    run=RunConfig(6, 6, checkpoint_every=2, log_every=1, reader_threads=1),
)
CLIENT = """
import json, os, sys, time

def note(**what):
    with open(os.environ["TRACKIO_NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    def __init__(self, name):
        self.name = name
    def log(self, values, step):
        note(run=self.name, step=step, **values)
    def finish(self):
        note(run=self.name, end=True)

def init(project, name, config, resume, **more):
    print("noise of a client", flush=True)
    print("noise of a client", file=sys.stderr, flush=True)
    match os.environ.get("TRACKIO_FAULT"):
        case "no login": raise RuntimeError(f"no login with {os.environ['TRACKIO_TOKEN']}")
        case "exit": sys.exit("you must log in")
        case "die": os._exit(9)
        case "hang": time.sleep(600)
        case "hiccup" if not os.path.exists(os.environ["TRACKIO_NOTES"]):
            note(failed=True)
            raise ConnectionError("no route to host")
    note(begun=name, project=project, resume=resume, config=config)
    return Run(name)
"""


class Client:
    """The stand-in's notes."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def said(self, key: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.is_file() else []
        return [line for line in lines if key in line]

    def wait_for(self, key: str, count: int) -> list[dict[str, Any]]:
        """Wait until it has noted so much: a stopped training does not wait for it for long."""
        until = time.monotonic() + 60
        while len(found := self.said(key)) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} notes of {key}"
            time.sleep(0.02)
        return found


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "trackio.py").write_text(CLIENT)
    monkeypatch.syspath_prepend(str(tmp_path / "clients"))
    monkeypatch.setenv("TRACKIO_NOTES", str(tmp_path / "notes"))
    return Client(tmp_path / "notes")


def run(tiny: Any, out: Path, on_event: Any = lambda event: None, recipe: TrainRecipe = RECIPE, **more: Any) -> dict[str, Any]:
    origins = {"seed": "default", "optimizer.learning_rate": "ours: small"}
    options = TrainOptions(recipe, tiny.store.url, ("tiny-teacher",), out, "photos", origins=origins, track=("trackio",), **more)
    return launch.train(options, on_event)


def test_metrics_and_the_recipe_with_its_origins_arrive_and_a_resumed_run_keeps_its_id(
    tiny_store: Any, tmp_path: Path, client: Client, events: Any
) -> None:
    seen, remember = events
    out = tmp_path / "run"

    def stop(event: dict[str, Any]) -> None:
        remember(event)
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tiny_store, out, stop)
    client.wait_for("end", 1)
    run(tiny_store, out, remember)
    client.wait_for("end", 2)
    wanted = [(line["step"], line["loss"], line["learning_rate"]) for line in read_metrics(out)]
    assert [(line["step"], line["loss"], line["learning_rate"]) for line in client.said("step")] == wanted
    first, second = client.said("begun")
    run_id = json.loads((out / "tracking" / "trackio" / "state.json").read_text())["id"]
    assert first["begun"] == second["begun"] == f"run-{run_id}"
    assert (first["project"], first["resume"]) == ("eupe-pipeline", "allow")
    assert first["config"]["recipe"] == json.loads((out / "recipe.json").read_text())["recipe"]
    assert first["config"]["origins"]["optimizer.learning_rate"] == "ours: small"
    assert f"trackio: run {run_id}" in [event.get("text") for event in seen]
    assert not [event for event in seen if event["event"] == "warning"]


def test_each_of_several_students_is_a_run_of_its_own(tiny_store: Any, tmp_path: Path, client: Client) -> None:
    run(
        tiny_store, tmp_path / "both", students=("vit-mini", "convnext-mini"), recipe=replace(RECIPE, student=StudentConfig(sizes_px=(32,)))
    )
    ends = client.wait_for("end", 2)
    assert {one["run"].rpartition("-")[0] for one in ends} == {"both/vit-mini", "both/convnext-mini"}
    assert len(client.said("step")) == 12


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("no login", r"trackio does not take this run's metrics (RuntimeError: no login with ***). The training goes on"),
        ("exit", "trackio does not take this run's metrics (SystemExit: you must log in)"),
        ("die", "the process that feeds trackio ended with status 9; the training is not concerned"),
    ],
)
def test_a_client_that_fails_is_one_warning_and_the_run_is_what_it_would_be(
    tiny_store: Any, tmp_path: Path, client: Client, events: Any, monkeypatch: pytest.MonkeyPatch, fault: str, text: str
) -> None:
    seen, remember = events
    monkeypatch.setenv("TRACKIO_FAULT", fault)
    monkeypatch.setenv("TRACKIO_TOKEN", "s3cr3t-token")
    summary = run(tiny_store, tmp_path / "run", remember)
    assert summary["already"] is False
    (warning,) = [event["text"] for event in seen if event["event"] == "warning"]
    assert text in warning
    assert "s3cr3t" not in str(seen)
    assert len(read_metrics(tmp_path / "run")) == 6


def test_a_client_that_hangs_holds_up_neither_the_training_nor_its_end_for_long(
    tiny_store: Any, tmp_path: Path, client: Client, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, remember = events
    monkeypatch.setenv("TRACKIO_FAULT", "hang")
    monkeypatch.setattr(tracking, "FINISH_S", 0.5)
    began = time.monotonic()
    run(tiny_store, tmp_path / "run", remember)
    assert time.monotonic() - began < 20
    assert "trackio had not got all metrics yet; it ends by itself, within a minute" in [event.get("text") for event in seen]


def test_a_client_that_failed_once_gets_what_it_missed(
    tiny_store: Any, tmp_path: Path, client: Client, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, remember = events

    def wait(event: dict[str, Any]) -> None:
        remember(event)
        if event["event"] == "step":
            client.wait_for("failed", 1)

    monkeypatch.setenv("TRACKIO_FAULT", "hiccup")
    run(tiny_store, tmp_path / "run", wait)
    assert [line["step"] for line in client.said("step")] == [1, 2, 3, 4, 5, 6]
    assert client.said("end")
    assert [event["text"] for event in seen if event["event"] == "warning"] == [
        "trackio does not take this run's metrics (ConnectionError: no route to host). The training goes on; it is tried again, and "
        "metrics.jsonl has them all"
    ]
    assert "trackio takes this run's metrics again; what it missed was sent" in [event.get("text") for event in seen]


def test_a_training_that_is_killed_leaves_a_closed_run_behind(tiny_store: Any, tmp_path: Path, client: Client) -> None:
    def die(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            client.wait_for("begun", 1)
            os._exit(9)

    child = os.fork()
    if not child:
        run(tiny_store, tmp_path / "run", die)
        os._exit(0)
    os.waitpid(child, 0)
    client.wait_for("end", 1)
    run(tiny_store, tmp_path / "run")
    client.wait_for("end", 2)
    assert [line["step"] for line in client.said("step")] == [1, 2, 3, 4, 5, 6]
    assert len({line["begun"] for line in client.said("begun")}) == 1


def test_a_wrong_name_and_a_missing_client_are_refused_before_there_is_a_folder(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match="unknown tracker 'wandbb'; did you mean 'wandb'"):
        TrainOptions(RECIPE, tiny_store.store.url, ("tiny-teacher",), tmp_path / "run", "photos", track=("wandbb",))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="track is a list of names"):
        TrainOptions(RECIPE, tiny_store.store.url, ("tiny-teacher",), tmp_path / "run", "photos", track="wandb")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["--store", tiny_store.store.url, "--data", "photos", "--features", "tiny-teacher", "--out", str(tmp_path / "run")]
    assert main(["train", "--stage", "2", "--recipe", "demo", "--track", "mlflow", *words]) == 2
    assert "pip install mlflow-skinny" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
