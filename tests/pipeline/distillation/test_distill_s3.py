"""A store behind a URL: the same call, the tokens in the bucket, runs and exports in the folder."""

from pathlib import Path

import pytest

from tests.jobs.conftest import bucket as bucket  # a fixture

from ...storage.faulty_s3 import FaultyServer
from .conftest import Command


@pytest.mark.long
def test_a_store_in_a_bucket_serves_a_distillation(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, bucket: FaultyServer
) -> None:
    call = ["distill", photos, "--teacher", teacher_run, "--student", "vit-mini", "--recipe", recipe, "--workers", 0]
    call += ["--store", "s3://runs/store", "--out", tmp_path / "run"]
    planned = command(*call, "--dry-run")
    assert planned["extraction"]["teacher"]["missing"] == 80
    result = command(*call)
    assert next(iter(result["feature_sets"].values()))["rows"] == 80
    assert Path(result["exports"]["vit-mini"]["timm"], "export.json").is_file()
    done = command(*call, "--dry-run")
    assert (done["hours"], done["bytes"]) == (0, 0)
