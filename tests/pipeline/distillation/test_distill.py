"""`distill`: one call from photos to an exported student; a killed one goes on, a second student and a second folder share the tokens."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation.distill import distill
from eupe_pipeline.pipeline.distillation.options import DistillOptions
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.storage.store import FeatureStore

from .conftest import Command, write_photos

SCRIPT = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"
BACKBONE = Path("model") / "backbone.safetensors"


def words(photos: Path, teacher: Path, recipe: Path, out: Path, *more: object) -> list[str]:
    given = ["distill", photos, "--teacher", teacher, "--student", "vit-mini", "--recipe", recipe, "--out", out, "--workers", 0, *more]
    return [str(word) for word in given]


def computed(result: dict[str, Any]) -> set[str]:
    """The stages that did any work: what a call extracted and trained."""
    return {
        event["stage"]
        for event in result["events"]
        if event["event"] in ("step", "progress") and event["stage"].startswith(("extract", "vit", "proxy"))
    }


def test_one_command_goes_from_photos_to_an_export_and_a_report(
    photos: Path, test_photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "runs" / "first"
    result = command(*words(photos, teacher_run, recipe, out, "--test", test_photos))
    assert json.loads((out / "results.json").read_text()) == {key: result[key] for key in result if key not in ("event", "events")}
    assert set(result["knn"]) == {"random", "stage2", "teachers"}
    assert result["knn"]["stage2"]["test_images"] == 20
    assert (tmp_path / "runs" / "store" / "eupe-store.json").is_file(), "the store lies beside OUT, where later calls find it"
    exported = Path(result["exports"]["vit-mini"]["timm"])
    assert json.loads((exported / "export.json").read_text())["weights_sha256"] == file_sha256(out / "vit-mini" / "stage2" / BACKBONE)
    assert "kNN of the student" in (out / "report.html").read_text()
    plan = next(event for event in result["events"] if event["event"] == "plan")
    (key,) = result["feature_sets"]
    assert plan["extraction"]["teacher"]["missing"] == result["feature_sets"][key]["rows"] == 80
    assert plan["bytes"] <= result["feature_sets"][key]["bytes"] <= plan["bytes"] * 1.2 + 20_000, "the plan's bytes are those of the tokens"
    training = plan["training"]["vit-mini, stage 2"]
    assert (training["steps"], training["batch"], training["epochs"], training["done"]) == (12, 8, 2.4, False)
    assert plan["hours"] == pytest.approx(training["hours"] + plan["extraction"]["teacher"]["hours"])
    assert training["hours"] > 0

    again = command(*words(photos, teacher_run, recipe, out, "--test", test_photos))
    assert computed(again) == set(), "nothing is computed twice"
    assert again["knn"]["stage2"]["cls"] == result["knn"]["stage2"]["cls"]
    (train,) = again["commands"]
    assert main([*shlex.split(train)[1:], "--json"]) == 0, "the command that a training is can be given by itself"


def test_a_killed_call_goes_on_and_ends_with_the_weights_of_one_that_was_not(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    whole = command(*words(photos, teacher_run, recipe, tmp_path / "whole", "--store", tmp_path / "a", "--export", "none"))
    killed = tmp_path / "killed"
    call = words(photos, teacher_run, recipe, killed, "--store", tmp_path / "b", "--export", "none")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *call, "--json"], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] >= 6:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    result = command(*call)
    assert not [event for event in result["events"] if event["event"] == "progress" and event["stage"] == "extract teacher"]
    first, second = (Path(found["students"]["vit-mini"]["stage2"]) / BACKBONE for found in (whole, result))
    assert file_sha256(first) == file_sha256(second)


def test_a_second_student_costs_its_own_steps_only(photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    first = command(*words(photos, teacher_run, recipe, out, "--export", "none"))
    trained = Path(first["students"]["vit-mini"]["stage2"]) / BACKBONE
    before = trained.stat().st_mtime_ns
    both = command(*words(photos, teacher_run, recipe, out, "--export", "none", "--student", "proxy-small"))
    assert computed(both) == {"proxy-small, stage 2"}
    assert trained.stat().st_mtime_ns == before
    elsewhere = command(*words(photos, teacher_run, recipe, tmp_path / "other", "--export", "none"))
    assert computed(elsewhere) == {"vit-mini, stage 2"}, "another folder beside the first shares its store"
    assert elsewhere["feature_sets"].keys() == first["feature_sets"].keys()


def test_a_dry_run_says_the_plan_and_writes_nothing(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = command(*words(photos, teacher_run, recipe, tmp_path / "new" / "run", "--dry-run"))
    assert sorted(tmp_path.rglob("*")) == before
    assert plan["dry_run"] is True
    assert plan["photos"] == 40
    assert plan["extraction"]["teacher"]["views"] == 80
    assert plan["hours"] > 0
    command(*words(photos, teacher_run, recipe, tmp_path / "new" / "run", "--export", "none"))
    done = command(*words(photos, teacher_run, recipe, tmp_path / "new" / "run", "--dry-run"))
    assert (done["hours"], done["bytes"], done["training"]["vit-mini, stage 2"]["done"]) == (0, 0, True)


def test_long_work_is_asked_about_and_refused_where_nobody_can_answer(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eupe_pipeline.pipeline.distillation.plan.ASK_ABOVE_BYTES", 10)
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none")
    assert main(call) == 2
    assert "Say --yes" in capsys.readouterr().err
    assert FeatureStore.open(tmp_path / "store").list_features() == [], "nothing was computed"
    assert main([*call, "--yes"]) == 0


def test_the_same_from_python(photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path) -> None:
    options = DistillOptions(
        str(photos), tmp_path / "run", (TeacherRequest(str(teacher_run)),), ("vit-mini",), recipe=str(recipe), exports=(), workers=0
    )
    assert Path(distill(options)["report"]).is_file()


MISTAKES = [
    ("--teacher techer", "unknown teacher 'techer'"),
    ("--student vit-mimi", "did you mean 'vit-mini'"),
    ("--stages 3", "'3' is not one of"),
    ("--test {photos}", "test images are also learnt from"),
    ("--test {flat}", "has no labels"),
    ("--test {nothing}", "does not exist"),
    ("--budget 20", None),
    ("--budget lots", "'lots' is not a size such as 200GB"),
    ("--budget 0GB", "is not a size"),
    ("--hours 0", "0.0 is not in the range x>0"),
    ("--export tim", "'tim' is not one of"),
    ("--export none --export timm", "means no format"),
    ("--out {photos}", "is not empty and holds no distillation"),
    ("--out s3://bucket/run", None),
    ("--recipe eupe-stage1", "holds no stage 2"),
    ("--recipe {nothing}.toml", "there is no recipe file"),
    ("--budget 1GB --recipe demo", "give one of the two"),
    ("--workers 2x", "'2x' is not a valid integer"),
]


@pytest.mark.parametrize(("more", "says"), [row for row in MISTAKES if row[1] is not None])
def test_a_mistake_is_refused_before_anything_is_computed(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, says: str
) -> None:
    flat = write_photos(tmp_path / "flat", [])
    flat.mkdir()
    for path in sorted(photos.rglob("*.png"))[:3]:
        (flat / path.name).write_bytes(path.read_bytes() + b"\0")
    given = shlex.split(more.format(photos=photos, flat=flat, nothing=tmp_path / "nothing"))
    base = ["distill", str(photos), "--workers", "0"]
    for option, value in (("--teacher", teacher_run), ("--student", "vit-mini"), ("--recipe", recipe), ("--out", tmp_path / "run")):
        base += [] if option in given or (option == "--recipe" and "--budget" in given) else [option, str(value)]
    assert main([*base, *given]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.safetensors"))


def test_another_request_is_refused_in_a_folder_that_answers_one(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = words(photos, teacher_run, recipe, tmp_path / "run", "--export", "none")
    assert main(call) == 0
    assert main([*call, "--teacher-size", f"{teacher_run}=32"]) == 2
    error = capsys.readouterr().err
    assert "holds a distillation of another request" in error
    assert "teachers was" in error


def test_requests_that_cannot_be_are_refused_when_they_are_made(tmp_path: Path) -> None:
    teacher = (TeacherRequest("efficientnet-lite0"),)
    for wrong, says in (
        ({"students": "vit-mini"}, "students is a list"),
        ({"students": ()}, "needs a teacher and a student"),
        ({"students": ("vit-mini", "vit-mini")}, "named twice"),
        ({"stages": "2,1"}, "unknown stages"),
        ({"exports": ("timn",)}, "did you mean 'timm'"),
        ({"hours": 0.0}, "above 0"),
        ({"out": "s3://bucket/run"}, "is a folder of this machine"),
    ):
        given: dict[str, Any] = {"photos": "photos", "out": tmp_path, "teachers": teacher, "students": ("vit-mini",)} | wrong
        with pytest.raises(BadInput, match=says):
            DistillOptions(**given)
