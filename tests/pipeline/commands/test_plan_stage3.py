"""`plan --stage 3` prints both ways to stage 3's targets, for a recipe's sizes and the student that is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main

RECIPE = """
[stage2.student]
architecture = "vit-mini"
[stage3.student]
architecture = "vit-mini"
sizes_px = [16]
[stage3.teacher]
source = "live"
sizes_px = [16, 32]
[stage3.run]
steps = 10
batch_size = 8
[stage3.views]
views_per_image = 3
[stage2.views]
views_per_image = 3
"""


def test_a_stage_3_is_planned_both_ways_and_other_stages_are_not(
    tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    call = ["plan", "--store", tiny_store.store.url, "--data", "photos", "--teacher", str(tiny_store.teacher_run), "--recipe", str(recipe)]
    assert main([*call, "--stage", "3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = plan["for photos"]["rows"]
    told = plan["stage 3"]
    assert told["samples"] == 80
    assert rows == 3 * plan["for photos"]["images"], "the views of the recipe"
    assert told["ways"]["cached"]["bytes"] == rows * sum(one["bytes_of_a_view"] for one in told["sets"].values())
    assert told["ways"]["live"]["bytes"] == 0
    assert list(told["codecs"]) == ["fp32", "fp16", "int8"], "48 channels are no groups of int4"
    assert main([*call, "--stage", "3", "--student", "convnext-mini", "--student-rate", "50"]) == 0
    text = capsys.readouterr().out
    assert "cached_costs_less_from_student" in text
    assert "relative_error" in text
    assert main([*call, "--stage", "2", "--student-rate", "50", "--json"]) == 0
    assert "stage 3" not in json.loads(capsys.readouterr().out.splitlines()[-1])
