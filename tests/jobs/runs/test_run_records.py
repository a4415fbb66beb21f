"""Runs in an object store looked at from anywhere: listed, shown and compared as folders are, from whole checkpoints alone."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs import upload_thread as run_uploads
from eupe_pipeline.jobs.runs.remote_run import MANIFEST
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.runs import compare_runs, list_runs, show_run
from eupe_pipeline.storage.core.errors import BadInput, Interrupted
from eupe_pipeline.storage.objects.objects import open_objects

from ...storage.faulty_s3 import FaultyServer
from ..training.test_train import RECIPE, interrupt_after
from ..training_request import train

BOTH = ("vit-mini", "convnext-mini")


def quiet(event: Any) -> None:
    pass


def test_runs_at_a_url_are_listed_shown_and_compared(
    tiny_store: Any, bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "machine"))
    monkeypatch.setattr(run_uploads, "GRACE_S", 30.0)
    root = f"s3://runs/{uuid.uuid4().hex}"
    student = replace(RECIPE, student=replace(RECIPE.student, options={}, sizes_px=(32,)))
    train(student, tiny_store.store, ["tiny-teacher"], data="photos", out=f"{root}/both", students=BOTH)
    with pytest.raises(Interrupted):
        train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=f"{root}/cut", on_event=interrupt_after(4))
    rows = list_runs(folder=root, on_event=quiet)["runs"]
    assert {name: one["state"] for name, one in rows.items()} == {
        "both/convnext-mini": "finished", "both/vit-mini": "finished", "cut": "resumes at 4",
    }  # fmt: skip
    open_objects(f"{root}/cut").remove(f"checkpoints/step-0000004/{MANIFEST}")
    assert show_run(out=f"{root}/cut", on_event=quiet)["state"] == "resumes at 3"
    found = compare_runs(outs=[f"{root}/cut", f"{root}/both/vit-mini"], on_event=quiet)["differing"]
    assert found["student.sizes_px"] == {f"{root}/cut": [24], f"{root}/both/vit-mini": [32]}
    assert main(["runs", "show", f"{root}/both/vit-mini"]) == 0
    assert "state: finished" in capsys.readouterr().out
    with pytest.raises(BadInput, match="holds no run"):
        show_run(out=f"{root}/nothing", on_event=quiet)
    assert main(["runs", "ls", str(tmp_path / "nowhere")]) == 2
