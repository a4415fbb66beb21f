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
import torch
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
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
        [sys.executable, "-c", SCRIPT, *call, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
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


def test_other_photos_of_the_same_name_are_refused_in_a_folder_that_answers_for_some(
    photos: Path, cifar: list[tuple[str, bytes]], teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(words(photos, teacher_run, recipe, out, "--export", "none")) == 0
    others = write_photos(tmp_path / "elsewhere" / "photos", cifar[40:60])
    assert main(words(others, teacher_run, recipe, out, "--export", "none")) == 2
    assert "these photos are others" in capsys.readouterr().err
    assert not (out / "vit-mini-v2").exists()


def test_a_relative_name_from_another_folder_is_the_same_request(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command(*words(photos, teacher_run, recipe, out, "--teacher-size", f"{teacher_run}=24", "--export", "none"))
    monkeypatch.chdir(teacher_run.parent)
    near = f"./{teacher_run.name}"
    call = [near if word == "NEAR" else word for word in words(photos, Path("NEAR"), recipe, out, "--teacher-size", f"{near}=24")]
    assert computed(command(*call, "--export", "none")) == set()


def test_a_step_counts_what_its_calls_did_and_nothing_where_all_was_done(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    first = command(*words(photos, teacher_run, recipe, tmp_path / "a", "--export", "none"))
    other = command(*words(photos, teacher_run, recipe, tmp_path / "b", "--export", "none"))
    assert first["steps"]["extract teachers"]["rows"] == 80
    assert "extract teachers" not in other["steps"], "the tokens were there: no rate is made of that"
    assert other["steps"]["train vit-mini, stage 2"]["rows"] == 12 * 8


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


MISTAKES = [  # three at each option
    ("--photos {nothing}", "does not exist"),
    ("--photos {flat}/text", "no image was found in"),
    ("--photos s3://bucket/photos", "no credentials for s3://bucket/photos"),
    ("--teacher techer", "unknown teacher 'techer'"),
    ("--teacher dinov3-h+", "the weights of teacher dinov3-h+ are missing"),
    ("--teacher {flat}", "holds no model/model.json: give a finished run"),
    ("--teacher-size 32", "'32' is not TEACHER=PX"),
    ("--teacher-size other=32", "--teacher-size names 'other', which is not among the teachers"),
    ("--teacher-size {teacher}=17", "takes sizes that are multiples of 8 px, got 17"),
    ("--weights {flat}", "is not TEACHER=PATH"),
    ("--weights other={flat}", "--weights names 'other', which is not among the teachers"),
    ("--student vit-mimi", "did you mean 'vit-mini'"),
    ("--student vit-mini --student vit-mini", "a student is named twice: vit-mini"),
    ("--student timm:resnet_99", "resnet_99"),
    ("--out {photos}", "is not empty and holds no distillation"),
    ("--out s3://bucket/run", "--out is a folder of this machine"),
    ("--out {flat}/text/notes.txt/run", "cannot write"),
    ("--out {photos}/run", "would lie in"),
    ("--test {photos}", "test images are also learnt from"),
    ("--test {flat}", "has no labels"),
    ("--test {nothing}", "does not exist"),
    ("--stages 3", "'3' is not one of"),
    ("--stages 1-2-3", "'1-2-3' is not one of"),
    ("--stages 2 --stages all", "'all' is not one of"),
    ("--proxy vit-mimi --stages 1,2", "did you mean 'vit-mini'"),
    ("--proxy vit-mini", "--proxy is stage 1's student, and stage 1 is not among the stages 2"),
    ("--proxy {teacher} --stages 1,2", "unknown"),
    ("--targets lives", "'lives' is not one of"),
    ("--targets cached", "--targets says where stage 3's come from, and the stages are 2"),
    ("--targets live --stages 1,2 --proxy vit-mini", "--targets says where stage 3's come from, and the stages are 1,2"),
    ("--budget lots", "'lots' is not a size such as 200GB"),
    ("--budget 0GB", "is not a size"),
    ("--budget 1GB --recipe demo", "give one of the two"),
    ("--budget 100", "the least that holds 40 photos is"),
    ("--hours 0", "0.0 is not in the range x>0"),
    ("--hours 6h", "'6h' is not a valid float"),
    ("--hours 1 --recipe demo", "give one of the two"),
    ("--export tim", "'tim' is not one of"),
    ("--export none --export timm", "means no format"),
    ("--export eupe", "the official hub builds six shapes only"),
    ("--store {photos}", "is not a feature store and is not empty"),
    ("--store {photos}/cat/store", "would lie in"),
    ("--store {photo}", "is a file; a store is a folder or a URL"),
    ("--store foo://bucket/x", "Protocol not known: foo"),
    ("--name a/b", "the name of a dataset has"),
    ("--name photos@1", "the name of a dataset has"),
    ("--name {long}", "the name of a dataset has"),
    ("--recipe eupe-stage1", "holds no stage 2"),
    ("--recipe {nothing}.toml", "there is no recipe file"),
    ("--recipe eupe-stage22", "did you mean 'eupe-stage2'"),
    ("--workers 2x", "'2x' is not a valid integer"),
    ("--workers -1", "-1 is not in the range x>=0"),
    ("--max-bad-share 2", "2.0 is not in the range 0<=x<=1"),
    ("--max-bad-share most", "'most' is not a valid float"),
    ("--max-bad-share", "requires an argument"),
    ("--address nowhere", "--workers 0 runs in this process and cannot use --address"),
]


@pytest.fixture(scope="module")
def mistaken(cifar: list[tuple[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, `flat` photos without labels, and a folder without any."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_photos(folder / "photos", cifar[:40])
    (folder / "flat" / "text").mkdir(parents=True)
    (folder / "flat" / "text" / "notes.txt").write_text("no photo")
    for number, (_, data) in enumerate(cifar[40:43]):
        (folder / "flat" / f"{number}.png").write_bytes(data)
    return folder


@pytest.mark.parametrize(("more", "says"), MISTAKES)
def test_a_mistake_is_refused_before_anything_is_computed(
    mistaken: Path, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: str,
    says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(scaling, "LEAST_STEPS", 4)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)
    places = {"photos": mistaken / "photos", "flat": mistaken / "flat", "nothing": mistaken / "nothing", "teacher": teacher_run}
    photo = next((mistaken / "photos").rglob("*.png"))
    given = shlex.split(more.format(**places, photo=photo, long="x" * 101))
    photos = given[given.index("--photos") + 1] if "--photos" in given else str(mistaken / "photos")
    given = [word for word in given if word not in ("--photos", photos)] if "--photos" in given else given
    base = ["distill", photos, *([] if "--workers" in given else ["--workers", "0"])]
    for option, value in (("--teacher", teacher_run), ("--student", "vit-mini"), ("--out", tmp_path / "run")):
        base += [] if option in given else [option, str(value)]
    base += [] if "--store" in given else ["--store", str(tmp_path / "store")]
    assert main([*base, *given]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("shards"))


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
        ({"targets": "cashed"}, "did you mean 'cached'"),
        ({"hours": 0.0}, "above 0"),
        ({"out": "s3://bucket/run"}, "is a folder of this machine"),
    ):
        given: dict[str, Any] = {"photos": "photos", "out": tmp_path, "teachers": teacher, "students": ("vit-mini",)} | wrong
        with pytest.raises(BadInput, match=says):
            DistillOptions(**given)
