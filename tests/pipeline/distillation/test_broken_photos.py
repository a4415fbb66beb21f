"""A photo that cannot be decoded stops a distillation, and each way out that the message names goes on in the same folder."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore

from .conftest import Command
from .test_distill import words


def truncated(folder: Path, number: int = 0) -> Path:
    """Cut a PNG to half of its bytes: the index accepts its header, the decoder does not."""
    victim = sorted(folder.rglob("*.png"))[number]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    return victim


def refused(capsys: pytest.CaptureFixture[str], call: list[str]) -> str:
    """The message of a command that must be refused."""
    capsys.readouterr()
    assert main(call) == 2
    return capsys.readouterr().err


def test_a_truncated_photo_is_left_out_or_taken_away_and_the_same_command_goes_on(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = truncated(photos)
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none")
    error = refused(capsys, call)
    name = victim.relative_to(photos).as_posix()
    for said in (f"1 of 40 images failed, more than the limit of 0.10% ({name}: ", "--allow-removed", "--max-bad-share", "another --name"):
        assert said in error

    left_out = command(*call, "--max-bad-share", 0.2)
    (key,) = left_out["feature_sets"]
    assert FeatureStore.open(tmp_path / "store").features(key).failed_rows().tolist() == [0, 1], "its two views"
    assert command(*call)["students"] == left_out["students"], "what was accepted is not asked about again"

    victim.unlink()
    assert "are not in" in refused(capsys, call)
    taken_away = command(*call, "--allow-removed")
    assert taken_away["students"] == {"vit-mini": {"stage2": str(tmp_path / "run" / "vit-mini-v2" / "stage2")}}


def test_taking_a_truncated_photo_away_needs_no_other_folder_where_nothing_was_trained(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = truncated(photos)
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none")
    assert "images failed" in refused(capsys, call)
    victim.unlink()
    assert "say --allow-removed" in refused(capsys, call)
    result = command(*call, "--allow-removed")
    assert FeatureStore.open(tmp_path / "store").dataset(result["dataset"]).removed_count == 1
    assert Path(result["report"]).is_file()


@pytest.mark.parametrize("way", ["--allow-removed", "--max-bad-share"])
def test_a_truncated_test_photo_has_the_same_ways_out(
    photos: Path, test_photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str], way: str,
) -> None:  # fmt: skip
    victim = truncated(test_photos)
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none", "--test", test_photos)
    error = refused(capsys, call)
    assert "1 of 20 images" in error
    assert "more than the limit of 0.10%" in error
    assert "--allow-removed" in error
    if way == "--allow-removed":
        victim.unlink()
    result = command(*call, way, *([] if way == "--allow-removed" else [0.2]))
    assert result["knn"]["teachers"]["teacher"]["test_images"] == 19
    assert result["knn"]["stage2"]["test_images"] == 19


def test_a_test_photo_that_is_learnt_from_is_taken_away_from_the_photos(
    photos: Path, test_photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Both datasets are there when the overlap is found, so that the photo's removal is said."""
    victim = sorted(photos.rglob("*.png"))[0]
    (test_photos / victim.parent.name / "again.png").write_bytes(victim.read_bytes())
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none", "--test", test_photos)
    assert "test images are also learnt from" in refused(capsys, call)
    victim.unlink()
    assert "say --allow-removed" in refused(capsys, call)
    assert command(*call, "--allow-removed")["knn"]["stage2"]["test_images"] == 21


def test_a_share_that_is_none_is_refused(photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path) -> None:
    from eupe_pipeline.jobs.extraction.options import TeacherRequest
    from eupe_pipeline.pipeline.distillation.options import DistillOptions

    given: dict[str, Any] = {"photos": str(photos), "out": tmp_path, "teachers": (TeacherRequest(str(teacher_run)),)}
    with pytest.raises(BadInput, match=r"--max-bad-share is a share from 0 to 1, got 20"):
        DistillOptions(**given, students=("vit-mini",), max_bad_share=20)
