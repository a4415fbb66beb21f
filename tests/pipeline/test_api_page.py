"""docs/api.md: its examples run one after another on the tiny store's images, and it names every function and request."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline import pipeline

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_examples_run(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_store.teacher_run.parent / "images", tmp_path / "photos")
    shutil.copytree(tiny_store.teacher_run, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert names["made"]["images"] == 24
    assert (names["found"]["shards_missing"], names["found"]["rows"]) == (0, 48)
    assert names["summary"]["already"] is False
    assert pipeline.train(names["run"])["already"] is True
    printed = capsys.readouterr().out
    assert str(names["summary"]["parameters"]) in printed
    assert (tmp_path / "run" / "evaluations").is_dir()


def test_the_page_names_every_function_and_request() -> None:
    text = PAGE.read_text(encoding="utf-8")
    kinds = ("OnEvent", "TrainRecipe", "ResolvedRecipe", "Prices", "StoredPixels", "teacher_requests")
    assert [name for name in pipeline.__all__ if name not in kinds and not re.search(rf"\b{name}\b", text)] == []
