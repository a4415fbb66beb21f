"""`export` of a run at a URL and of its parts: the run's origin goes along from the object store, on a real S3 server."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs.upload import local_copy
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.identity import file_sha256

from ...storage.faulty_s3 import FaultyServer
from ..training.test_train import RECIPE
from ..training_request import train


def test_the_average_of_a_run_at_a_url_is_exported_with_origin_and_adapters(
    tiny_store: Any, bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "machine"))
    url = f"s3://runs/{uuid.uuid4().hex}"
    recipe = replace(RECIPE, student=replace(RECIPE.student, ema=0.5))
    train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=url)
    trained = file_sha256(local_copy(url) / "average" / "model" / "backbone.safetensors")
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "another-machine"))
    for place in (f"{url}/average", f"{url}/average/"):
        out = tmp_path / f"out{len(place)}"
        command = ["export", place, "--format", "timm", "--out", str(out), "--adapters", "--store", tiny_store.store.url, "--json"]
        assert main(command) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == place
        record = json.loads((out / "timm" / "export.json").read_text())
        assert record["weights_sha256"] == trained
        assert record["run"].endswith("/average")
        card = (out / "timm" / "README.md").read_text()
        assert "the moving average of the run's weights" in card
        assert '"ema": 0.5' in card
        assert "tiny-teacher" in card
        assert ": not recorded." not in card
    assert main(["export", "s3://runs/nothing", "--format", "timm", "--out", str(tmp_path / "none")]) == 2
    assert "s3://runs/nothing holds no trained model" in capsys.readouterr().err
