"""Each tracker's own client, without a network: a run begun, gone on with and closed is found as it was sent.

A client that is not installed is skipped. CI has none, as together they bring 300 MB: `pip install wandb mlflow-skinny trackio`, then this.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core import choices
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.training.tracked_run import shown
from eupe_pipeline.student.training.trackers import TRACKERS, allowed, flat, require_clients

RECIPE = {"recipe": {"optimizer": {"learning_rate": 0.5}, "seed": 3}, "origins": {"optimizer.learning_rate": "paper", "seed": "--set"}}
LINES: list[dict[str, Any]] = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0, "losses": {"dinov3-h+": {"cls": 0.25}}}]
LATER: list[dict[str, Any]] = [{"step": 2, "loss": 2.0, "losses": {"dinov3-h+": {"cls": 0.25}}}, {"step": 3, "loss": 1.0}]


def test_the_table_has_the_trackers_that_the_command_offers() -> None:
    assert tuple(TRACKERS) == choices.TRACKERS


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_client_is_said_with_what_installs_it(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = TRACKERS[name]
    (tmp_path / row.module).mkdir()  # offline files of wandb lie in a folder `wandb`, which Python would import
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, row.module, raising=False)
    with pytest.raises(BadInput, match=rf"--track {name} needs .* {row.module}, which is not installed here: pip install {row.package}"):
        require_clients([name])


def test_names_and_values_are_as_mlflow_takes_them() -> None:
    assert allowed("losses/dinov3-h+/cls é") == "losses/dinov3-h_2b/cls _e9"
    assert flat({"a": {"b": [1, 2], "c": None}, "d": "x"}) == [("a.b", "[1, 2]"), ("a.c", "null"), ("d", '"x"')]


def test_no_secret_of_the_environment_or_of_a_url_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcd1234efgh")
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-77")
    text = shown(ValueError("no login with abcd1234efgh,\n dapi-77 at https://me:pass@host/x"))
    assert text == "ValueError: no login with ***, *** at https://***@host/x"


def feed(tracker: str, out: Path, lines: list[dict[str, Any]], how: str) -> list[dict[str, str]]:
    """Run the process that feeds a tracker over these metrics; returns what it says."""
    (out / "recipe.json").write_text(json.dumps(RECIPE))
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = [sys.executable, "-m", "eupe_pipeline.student.training.tracked_run", tracker, str(out), "my-run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "SECRET_KEY": "do-not-show"}
    done = subprocess.run(command, input=how, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_two_parts(tracker: str, out: Path) -> str:
    """Feed a run that is stopped after two steps and goes on from the first one; returns the id that both parts had."""
    said = feed(tracker, out, LINES, "stopped")
    kept = json.loads((out / "tracking" / tracker / "state.json").read_text())
    assert kept["sent"] == [2, True]
    assert said == [{"event": "note", "text": f"{tracker}: run {kept['id']}"}]
    assert feed(tracker, out, LATER, "finished") == said
    assert not any(b"do-not-show" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    return str(kept["id"])


def test_wandb_offline_keeps_both_parts_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_id = in_two_parts("wandb", tmp_path)
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    parts = [rows_of_wandb(path) for path in files]
    assert [[(row["_step"], row["loss"]) for row in rows] for rows, _ in parts] == [[(1, 4.0), (2, 2.0)], [(3, 1.0)]]
    assert parts[0][0][1]["losses/dinov3-h+/cls"] == 0.25
    assert parts[0][1]["recipe"] == RECIPE["recipe"]
    assert parts[0][1]["origins"] == RECIPE["origins"]


def rows_of_wandb(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The logged rows and the config in a file of wandb's."""
    from wandb.proto import wandb_internal_pb2

    data, rows, config = path.read_bytes()[7:], list[dict[str, Any]](), dict[str, Any]()
    while data:  # of a LevelDB log's first block: checksum, length, kind (1: whole)
        _, length, kind = struct.unpack_from("<IHB", data)
        assert kind == 1
        record = wandb_internal_pb2.Record.FromString(data[7 : 7 + length])
        data = data[7 + length :]
        if record.HasField("history"):
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config


def test_mlflow_without_a_server_keeps_both_parts_in_one_run_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = in_two_parts("mlflow", tmp_path)
    (run,) = (tmp_path / "mlruns").glob(f"*/{run_id}")
    history = [line.split() for line in (run / "metrics" / "loss").read_text().splitlines()]
    assert [(int(step), float(value)) for _, value, step in history] == [(1, 4.0), (2, 2.0), (3, 1.0)]
    assert (run / "metrics" / "losses" / "dinov3-h_2b" / "cls").is_file()
    assert (run / "params" / "optimizer.learning_rate").read_text() == "0.5"
    assert (run / "tags" / "origin.optimizer.learning_rate").read_text() == "paper"
    assert "status: 3" in (run / "meta.yaml").read_text()  # FINISHED


def test_trackio_on_this_machine_keeps_both_parts_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_id = in_two_parts("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "eupe-pipeline.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    database.close()
    assert [(name, step, json.loads(metrics)["loss"]) for name, step, metrics in rows] == [
        (f"my-run-{run_id}", 1, 4.0), (f"my-run-{run_id}", 2, 2.0), (f"my-run-{run_id}", 3, 1.0),
    ]  # fmt: skip
    assert json.loads(config)["recipe"] == RECIPE["recipe"]
