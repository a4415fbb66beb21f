"""export, import-weights and benchmark latency from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.student.export.formats import FORMATS

from ...student.export.test_export import make_run

Capture = pytest.CaptureFixture[str]


def last(capture: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def test_a_run_is_exported_taken_in_again_and_timed(tmp_path: Path, capsys: Capture) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32)
    assert main(["export", str(run), "--format", "timm", "--format", "transformers", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert list(last(capsys)["written"]) == ["timm", "transformers"]
    assert main(["import-weights", str(tmp_path / "out" / "timm"), "--out", str(tmp_path / "taken"), "--json"]) == 0
    taken = last(capsys)
    assert (taken["layout"], taken["size_px"], taken["notes"]) == ("timm", 32, [])
    arguments = ["benchmark", "latency", str(tmp_path / "out"), "--runtime", "eager", "--calls", "2", "--warmup", "0", "--json"]
    assert main(arguments) == 0
    assert last(capsys)["runtimes"]["eager"]["median_ms"] > 0


def test_the_formats_that_the_command_line_offers_are_those_that_there_are() -> None:
    from eupe_pipeline.pipeline.commands.main import cli

    (option,) = [one for one in cli.commands["export"].params if one.name == "formats"]
    assert list(getattr(option.type, "choices", ())) == list(FORMATS)


@pytest.mark.parametrize(("arguments", "why"), [
    (["export", "nowhere/run", "--format", "timm", "--out", "out"], "does not exist; give the folder of a finished run"),
    (["import-weights", "nowhere.pth", "--out", "out"], "does not exist"),
    (["benchmark", "latency", "nowhere"], "is not the folder of an export"),
])  # fmt: skip
def test_what_is_not_there_is_said_with_status_2(arguments: list[str], why: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert why in capsys.readouterr().err
