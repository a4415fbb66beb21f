"""A report is made of runs and caches that exist, and says what it could not show."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.features.features import FeatureReader

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(tiny_store: Any, made_run: Callable[..., Path]) -> Path:
    """A run with a model that learnt from the tiny store's features."""
    run = made_run("student", steps=30)
    shutil.copytree(tiny_store.teacher_run / "model", run / "model")
    (run / "identities.json").write_text(json.dumps({"targets": {"t": {"features": tiny_store.features().key}}}))
    return run


def result(capture: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def test_a_run_with_its_store_gets_pictures_neighbours_and_health(tiny_store: Any, trained: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(trained), "--store", tiny_store.store.url, "--size", "32", "--out", str(out), "--json"]) == 0
    assert result(capsys)["notes"] == []
    page = out.read_text()
    for part in ("evaluations", "runs", "pictures", "similarity", "neighbours", "store", "recipes"):
        assert f'<section id="{part}"' in page
    assert tiny_store.features().key.split("@")[1] in page
    assert page.count('type="radio"') % 3 == 0  # a photo of each of the three labels


def test_a_feature_set_alone_is_worth_a_report_and_verify_looks_at_every_byte(tiny_store: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    arguments = ["--store", tiny_store.store.url, "--features", "tiny-teacher", "--features", "tiny-gaps", "--verify", "--out", str(out)]
    assert main(["report", *arguments]) == 0
    page = out.read_text()
    assert "complete, every byte verified" in page
    assert "1 images failed" in page
    assert "broken" in page
    assert '<section id="runs"' not in page


def test_photos_that_are_gone_become_a_note_and_the_rest_stands(
    small_store: tuple[str, FeatureReader], trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, reader = small_store
    monkeypatch.setattr(type(reader.views.dataset), "_bytes_at", gone(reader))
    arguments = [str(trained), "--store", url, "--features", reader.key, "--out", str(tmp_path / "report.html"), "--json"]
    assert main(["report", *arguments]) == 0
    notes = result(capsys)["notes"]
    assert len(notes) == 2
    assert all("is not at" in note for note in notes)
    page = (tmp_path / "report.html").read_text()
    assert "No neighbours by tiny-int8" in page
    assert "1 shards missing" in page


def gone(reader: FeatureReader) -> Callable[..., bytes]:
    """The way an image is read when its source has been moved away."""
    read = type(reader.views.dataset)._bytes_at

    def reads(dataset: Any, place: str, row: Any) -> bytes:
        return read(dataset, "/moved/away", row)

    return reads


def test_a_store_that_has_nothing_of_the_runs_is_noted(
    tiny_store: Any, made_run: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    out = str(tmp_path / "report.html")
    assert main(["report", str(made_run("elsewhere")), "--store", tiny_store.store.url, "--out", out, "--json"]) == 0
    assert result(capsys)["notes"] == [f"{tiny_store.store.url} holds none of the feature sets that these runs learnt from."]


@pytest.mark.parametrize(("arguments", "why"), [
    ([], "a report is about something"),
    (["--features", "x"], "--features needs --store"),
])  # fmt: skip
def test_a_report_about_nothing_is_refused(tmp_path: Path, capsys: Capture, arguments: list[str], why: str) -> None:
    assert main(["report", *arguments, "--out", str(tmp_path / "report.html")]) == 2
    assert why in capsys.readouterr().err


def test_a_set_with_hardly_a_token_has_no_neighbours_and_says_so(
    small_store: tuple[str, FeatureReader], tmp_path: Path, capsys: Capture
) -> None:
    url, reader = small_store
    for record in (Path(url) / "features" / reader.key / "commits").iterdir():
        record.unlink()
    out = tmp_path / "report.html"
    assert main(["report", "--store", url, "--features", reader.key, "--out", str(out), "--json"]) == 0
    assert "tokens of 0 images" in result(capsys)["notes"][0]
    assert "3 shards missing" in out.read_text()
