"""Store and result lie apart from the photos, and a path means the same however it is written."""

import shlex
from pathlib import Path

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.store import FeatureStore

from .conftest import Command
from .test_distill import computed, words


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "the store {photos}/runs/store would lie in {photos}"),
        ("--dry-run", "the store {photos}/runs/store would lie in {photos}"),
        ("--store ../store", "the result {photos}/runs/first would lie in {photos}"),
        ("--store ../store --dry-run", "the result {photos}/runs/first would lie in {photos}"),
        ("--out ../run --store cat/store", "the store {photos}/cat/store would lie in {photos}"),
        ("--out ../run --store ../unseen/store --test ../unseen", "the store {unseen}/store would lie in {unseen}"),
        ("--out ../unseen/run --store ../store --test ../unseen", "the result {unseen}/run would lie in {unseen}"),
    ],
)
def test_a_place_inside_the_photos_is_refused_before_anything_is_made(
    photos: Path, test_photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], more: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos)
    before = sorted(tmp_path.rglob("*"))
    given = shlex.split(more)
    out = [] if "--out" in given else ["--out", "runs/first"]
    call = ["distill", ".", "--teacher", str(teacher_run), "--student", "vit-mini", "--recipe", str(recipe), "--workers", "0"]
    assert main([*call, *out, *given]) == 2
    error = capsys.readouterr().err
    assert says.format(photos=photos, unseen=test_photos) in error
    assert "outside" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_result_that_lies_inside_the_photos_already_is_gone_on_with(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    elsewhere = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none", "--store", tmp_path / "store")
    command(*elsewhere)
    (tmp_path / "run").rename(photos / "run")
    inside = words(photos, teacher_run, recipe, photos / "run", "--export", "none", "--store", tmp_path / "store")
    assert computed(command(*inside)) == set()


def test_a_store_that_lies_inside_the_photos_already_is_named_as_it_was(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FeatureStore.create(photos / "store")
    assert main(words(photos, teacher_run, recipe, photos / "run")) == 2
    assert "holds a feature store (store/eupe-store.json)" in capsys.readouterr().err


def test_a_way_over_the_folder_above_is_the_same_request(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = teacher_run / "model" / "backbone.safetensors"
    out = tmp_path / "run"
    first = command(*words(photos, teacher_run, recipe, out, "--export", "none"))
    below = tmp_path / "d1"
    below.mkdir()
    monkeypatch.chdir(below)
    teacher = Path("..") / ".." / teacher_run.relative_to(tmp_path.parent) if teacher_run.is_relative_to(tmp_path.parent) else teacher_run
    again = command(*words(Path("../photos"), teacher, Path("../tiny.toml"), Path("../run"), "--export", "none"))
    assert computed(again) == set()
    assert again["dataset"] == first["dataset"]
    assert weights.is_file()


def test_a_folder_that_recorded_such_a_way_is_gone_on_with(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    """Former versions recorded a path as it was typed."""
    out = tmp_path / "run"
    command(*words(photos, teacher_run, recipe, out, "--export", "none"))
    record = out / "distill.json"
    (tmp_path / "d1").mkdir()
    text = record.read_text()
    assert str(recipe) in text
    record.write_text(text.replace(str(recipe), f"{tmp_path}/d1/../tiny.toml").replace(str(teacher_run), f"{teacher_run}/../teacher"))
    assert computed(command(*words(photos, teacher_run, recipe, out, "--export", "none"))) == set()


def test_the_facts_have_a_line_for_each_student(
    photos: Path, test_photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none", "--test", test_photos)
    one, two = command(*call), command(*call, "--student", "proxy-small")
    (text,) = (text for name, text in one["facts"].items() if name.startswith("Student"))
    lines = {name: text for name, text in two["facts"].items() if name.startswith("Student")}
    assert one["facts"]["Student"] == text
    assert set(lines) == {"Student vit-mini", "Student proxy-small"}
    assert lines["Student vit-mini"] == text
    figures = two["knn"]["proxy-small: stage2"]["cls"]["ours"]
    assert lines["Student proxy-small"].startswith(f"{figures:.1f} % kNN, ")
