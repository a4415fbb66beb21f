"""docs/distill.md: its commands and its example run on a few real photos with the real teacher, with trainings of seconds."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
from eupe_pipeline.storage.core.cache_home import weights_folder

from .conftest import write_photos

PAGE = Path(__file__).parents[3] / "docs" / "distill.md"
SMALL = {"eupe_vitt16": "vit-mini", "eupe_convnext_tiny": "convnext-mini"}


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_every_command_of_the_page_runs_and_its_example_as_well(
    cifar: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (weights_folder() / "efficientnet-lite0.safetensors").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the teacher's weights")
    write_photos(tmp_path / "photos", cifar[:24])
    write_photos(tmp_path / "unseen", cifar[24:36])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "LEAST_STEPS", 4)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)
    text = PAGE.read_text(encoding="utf-8")
    for old, new in SMALL.items():
        text = text.replace(old, new)
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^    eupe-pipeline (.+)$", text, re.MULTILINE)]
    assert [line[0] for line in lines].count("distill") == 5
    for words in lines:
        assert main([*words, *([] if words[0] == "demo" else ["--workers", "0"])]) == 0, shlex.join(words)
    assert not (tmp_path / "runs" / "second").exists(), "a dry run"
    assert sorted(path.name for path in (tmp_path / "runs" / "first").glob("*-mini")) == ["convnext-mini", "vit-mini"]
    assert (tmp_path / "runs" / "store").is_dir()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(block, names)
    assert "report.html" in capsys.readouterr().out
