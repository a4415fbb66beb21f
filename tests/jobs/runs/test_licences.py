"""The terms of all weights behind a student are known, said and required before anything is computed; what is unknown is not free."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.jobs.runs.licences import terms_of_set, terms_of_teacher
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, Interrupted
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.storage.features.teacher_terms import note_terms
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.lineage import collect_terms
from eupe_pipeline.teachers.registry.licences import DECLARED
from eupe_pipeline.teachers.registry.resolve import BACKBONE_FILE, resolve_teacher
from eupe_pipeline.teachers.registry.spec import RANDOM_WEIGHTS
from eupe_pipeline.teachers.registry.table import OFFICIAL_EUPE, ROWS, UNKNOWN

from ...teachers.own_teachers import own_file
from ..training.test_train import LIVE, RECIPE, interrupt_after, run
from ..training_request import train_command

SMALL = (
    "views.photometric=none", "device=cpu", "student.architecture=vit-mini", "student.sizes_px=[24]", "adapter.width=32", "run.steps=2",
    "run.batch_size=6", "run.log_every=1",
)  # fmt: skip


def taught(by: Path, folder: Path, *teachers: str, init_from: Path | None = None) -> Path:
    """A copy of a model as a run of before terms were recorded, taught by some teachers; started from another run's model."""
    shutil.copytree(by, folder)
    targets = {name: {"identity": {"teacher": {"weights_sha256": "0" * 64}, "views": "v"}} for name in teachers}
    start = {} if init_from is None else {"init_from": {BACKBONE_FILE.name: file_sha256(init_from / BACKBONE_FILE)}}
    (folder / "identities.json").write_text(json.dumps({"targets": targets, **start}))
    student = {} if init_from is None else {"student": {"init_from": str(init_from)}}
    (folder / "recipe.json").write_text(json.dumps({"recipe": student, "origins": {}}))
    return folder


def imported(by: Path, folder: Path, layout: str = "eupe") -> Path:
    shutil.copytree(by, folder)
    (folder / "imported.json").write_text(json.dumps({"source": "official.pth", "layout": layout}))
    return folder


def forbids(terms: dict[str, Any]) -> dict[str, bool | None]:
    return {name: one["non_commercial"] for name, one in terms.items()}


def recorded_terms(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "recipe.json").read_text())["terms"]
    return found


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_published_weights_have_the_rows_terms_and_any_other_file_is_unknown(tiny_store: Any) -> None:
    spec = replace(tiny_store.teacher.spec, name="dinov2-g")
    row = ROWS["dinov2-g"].terms
    assert terms_of_teacher("dinov2-g", spec) == {"dinov2-g": row}
    hub = "hub:timm/vit_giant_patch14_reg4_dinov2.lvd142m@" + "a" * 40
    assert terms_of_teacher("dinov2-g", spec, Path(hub)) == {"dinov2-g": row}
    for weights in (Path("mine.safetensors"), Path(hub.replace("timm/", "someone/")), Path(hub.replace("lvd142m", "lvd142"))):
        (terms,) = terms_of_teacher("dinov2-g", spec, weights).values()
        assert (terms.non_commercial, terms.licence) == (None, UNKNOWN.licence)
        assert "its licence is Apache-2.0" in terms.source
    assert terms_of_teacher("dinov2-g", replace(spec, weights_sha256=RANDOM_WEIGHTS)) == {}
    assert terms_of_teacher("timm:resnet18", replace(spec, name="timm:resnet18")) == {"timm:resnet18": UNKNOWN}
    assert terms_of_teacher(str(tiny_store.teacher_run), tiny_store.teacher.spec) == {"teacher": UNKNOWN}
    assert terms_of_teacher(str(tiny_store.teacher_run), tiny_store.teacher.spec, Path("x"))["teacher"].non_commercial is None


def test_a_run_that_is_called_as_a_known_teacher_is_not_that_teacher(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    shutil.copytree(options.teachers[0].name, tmp_path / "dinov2-g")
    found = extract_features(replace(options, teachers=(TeacherRequest(str(tmp_path / "dinov2-g")),)))
    assert forbids(found["terms"]) == {"dinov2-g": None}
    assert terms_of_set(store.features("dinov2-g")) == {"dinov2-g": UNKNOWN}
    train_command(store=store.url, out=tmp_path / "run", features=["dinov2-g"], settings=SMALL)
    path = tmp_path / "run" / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "terms": None}))  # as runs of before have it
    assert collect_terms(tmp_path / "run", None) == {"dinov2-g": UNKNOWN}


COMMANDS: dict[str, Callable[[str, str, Path], list[str]]] = {
    "plan": lambda store, teacher, out: ["plan", "--store", store, "--data", "photos", "--teacher", teacher],
    "extract": lambda store, teacher, out: [
        "extract-features", "--store", store, "--data", "photos", "--teacher", teacher, "--workers", "0", "--seed", "5",
    ],
    "extract, dry": lambda store, teacher, out: [
        "extract-features", "--store", store, "--data", "photos", "--teacher", teacher, "--workers", "0", "--dry-run",
    ],
    "train": lambda store, teacher, out: [
        "train", "--stage", "2", "--store", store, "--data", "photos", "--features", "teacher", "--out", str(out),
        *(word for setting in SMALL for word in ("--set", setting)),
    ],
    "train, dry": lambda store, teacher, out: [*COMMANDS["train"](store, teacher, out), "--dry-run"],
    "distill": lambda store, teacher, out: [
        "distill", str(Path(store).parent / "images"), "--name", "photos", "--store", store, "--teacher", teacher, "--student", "vit-mini",
        "--out", str(out), "--workers", "0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_unknown_or_forbidden_is_refused_with_status_2_before_anything_is_computed(
    command: str, photos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, _ = photos
    teacher = options.teachers[0].name
    if command.startswith("train"):
        extract_features(options)
    before = files(tmp_path)
    monkeypatch.setattr("eupe_pipeline.teachers.registry.teacher.Teacher.forward", lambda *_: pytest.fail("a teacher was run"))
    assert main([*COMMANDS[command](store.url, teacher, tmp_path / "out"), "--require-licence", "commercial"]) == 2
    said = capsys.readouterr().err
    assert "teacher: not recorded (terms unknown to us" in said
    assert "--terms 'teacher=LICENCE'" in said
    assert "pecore-g, pecore-g-projected, pelang-g" in said
    assert "c-radiov4-h" in said
    assert files(tmp_path) == before


def test_a_student_of_a_proxy_is_bound_by_all_that_shaped_the_proxy_also_when_its_run_is_gone(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    teacher = Path(options.teachers[0].name)
    proxy = taught(teacher, tmp_path / "proxy", "pecore-g", "pelang-g", "dinov3-h+", init_from=imported(teacher, tmp_path / "taken"))
    seen: list[dict[str, Any]] = []
    found = extract_features(replace(options, teachers=(TeacherRequest(str(proxy)),)), seen.append)
    bound = {
        "imported: official.pth (through proxy)": True, "pecore-g (through proxy)": False, "pelang-g (through proxy)": False,
        "dinov3-h+ (through proxy)": False,
    }  # fmt: skip
    assert forbids(found["terms"]) == bound
    notes = [event.get("text", "") for event in seen]
    first = next(n for n, event in enumerate(seen) if event["event"] == "progress")
    assert [text for text in notes[:first] if text.startswith("licence of imported: official.pth (through proxy): FAIR Noncommercial")]
    shutil.rmtree(proxy)
    shutil.rmtree(tmp_path / "taken")
    summary = train_command(store=store.url, out=tmp_path / "run", features=["proxy"], settings=SMALL)
    assert forbids(summary["terms"]) == forbids(recorded_terms(tmp_path / "run")) == bound
    assert {name: one.non_commercial for name, one in collect_terms(tmp_path / "run", None).items()} == bound
    export(ExportOptions(tmp_path / "run", tmp_path / "export", ("timm",)))
    assert "NON-COMMERCIAL" in (tmp_path / "export" / "timm" / "README.md").read_text()
    with pytest.raises(BadInput, match=r"1 of 4 terms do not allow commercial use.*imported: official\.pth \(through proxy\): FAIR"):
        train_command(store=store.url, out=tmp_path / "other", features=["proxy"], settings=SMALL, require_licence="commercial")
    assert not (tmp_path / "other").exists()


def test_stage_3_is_bound_by_its_live_proxy_and_by_its_start_in_a_store_of_before(tiny_store: Any, tmp_path: Path) -> None:
    proxy = taught(tiny_store.teacher_run, tmp_path / "proxy", "pecore-g", "dinov3-h+")
    run(tiny_store, RECIPE, tmp_path / "stage2")
    assert recorded_terms(tmp_path / "stage2") == {"tiny-teacher": UNKNOWN._asdict()}
    start = replace(LIVE, student=replace(LIVE.student, init_from=str(tmp_path / "stage2")))
    summary = run(tiny_store, start, tmp_path / "stage3", proxy=proxy)
    through = {"pecore-g (through tiny-teacher)": False, "dinov3-h+ (through tiny-teacher)": False}
    assert forbids(summary["terms"]) == through, "the start's unknown teacher is this proxy"
    assert {name: one.non_commercial for name, one in collect_terms(tmp_path / "stage2", proxy).items()} == through


def test_a_declared_licence_is_recorded_in_store_and_run_and_need_not_be_said_again(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    name = own_file(tmp_path)
    own = replace(options, teachers=(TeacherRequest(name, size_px=32),), require_licence="commercial")
    with pytest.raises(BadInput, match="my-net: not recorded"):
        extract_features(own)
    assert store.list_features() == []
    found = extract_features(replace(own, terms={name: "commercial: our own weights"}))  # as it was named, or by its own name
    assert found["terms"] == {"my-net": {"licence": "our own weights", "non_commercial": False, "source": DECLARED}}
    assert extract_features(replace(own, terms={"my-net": "commercial: our own weights"}))["terms"] == found["terms"]
    assert extract_features(own)["terms"] == found["terms"]
    copy = FeatureStore.create(str(tmp_path / "copy"))
    copy_features(store, found["features"]["my-net"], copy)
    for number, place in enumerate((store, copy)):
        out = tmp_path / f"run{number}"
        train_command(store=place.url, out=out, features=["my-net"], settings=SMALL, require_licence="commercial")
        assert recorded_terms(out) == found["terms"]
    export(ExportOptions(tmp_path / "run0", tmp_path / "export", ("timm",)))
    assert "license_name: our-own-weights" in (tmp_path / "export" / "timm" / "README.md").read_text()


@pytest.mark.parametrize("name", ["imported: official.pth", "imported: official.pth (through taken)", "taken"])
def test_what_a_refusal_asks_to_declare_can_be_declared_so(photos: Any, tmp_path: Path, name: str) -> None:
    """Of an imported model, by what the refusal shows, and by the teacher's name; at the extraction and at the training."""
    store, options, _ = photos
    taken = imported(Path(options.teachers[0].name), tmp_path / "taken", layout="timm")
    asked = replace(options, teachers=(TeacherRequest(str(taken)),), require_licence="commercial")
    with pytest.raises(BadInput, match=r"--terms 'imported: official\.pth \(through taken\)=LICENCE'"):
        extract_features(asked)
    extract_features(replace(asked, require_licence=None))
    training = {"store": store.url, "features": ["taken"], "settings": SMALL, "require_licence": "commercial"}
    with pytest.raises(BadInput, match=r"--terms 'imported: official\.pth \(through taken\)=LICENCE'"):
        train_command(out=tmp_path / "run", **training)
    summary = train_command(out=tmp_path / "run", terms={name: "mit"}, **training)
    assert forbids(summary["terms"]) == {"imported: official.pth (through taken)": False}
    assert forbids(extract_features(replace(asked, terms={name: "mit"}))["terms"]) == {"imported: official.pth (through taken)": False}
    train_command(out=tmp_path / "other", **training)


def test_distill_takes_a_declaration_by_the_name_that_is_typed(
    photos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _ = photos
    own_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = [*COMMANDS["distill"](store.url, "my_teacher.py:build", tmp_path / "out"), "--require-licence", "commercial", "--dry-run"]
    assert main(command) == 2
    assert main([*command, "--terms", "my_teacher.py:build=MIT", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert forbids(plan["terms"]) == {"my-net": False}


def test_a_resumed_run_keeps_what_was_declared_when_it_began(tiny_store: Any, tmp_path: Path) -> None:
    declared: dict[str, Any] = {"terms": {"tiny-teacher": "MIT"}, "require_licence": "commercial"}
    with pytest.raises(BadInput, match="tiny-teacher: not recorded"):
        run(tiny_store, RECIPE, tmp_path / "run", require_licence="commercial")
    with pytest.raises(Interrupted):
        run(tiny_store, RECIPE, tmp_path / "run", on_event=interrupt_after(3), **declared)
    summary = run(tiny_store, RECIPE, tmp_path / "run", require_licence="commercial")
    assert summary["resumed_from"] == 3
    assert forbids(recorded_terms(tmp_path / "run")) == {"tiny-teacher": False}
    assert forbids(run(tiny_store, RECIPE, tmp_path / "run", require_licence="commercial")["terms"]) == {"tiny-teacher": False}


def test_what_a_student_starts_from_binds_it(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "mine")
    taken = imported(tmp_path / "mine", tmp_path / "taken")
    for name in ("recipe.json", "identities.json"):
        (taken / name).unlink()
    settings = (*SMALL, "student.options={depth = 1, layer_scale = 0.5}")
    both = {"require_licence": "commercial", "terms": {"tiny-teacher": "apache-2.0"}, "store": tiny_store.store.url}
    start = [f"student.init_from={taken}"]
    with pytest.raises(BadInput, match=r"imported: official\.pth: FAIR Noncommercial"):
        train_command(out=tmp_path / "run", settings=[*settings, *start], **both)
    assert not (tmp_path / "run").exists()
    assert forbids(train_command(out=tmp_path / "run", settings=settings, **both)["terms"]) == {"tiny-teacher": False}
    from_mine = train_command(out=tmp_path / "next", settings=[*settings, f"student.init_from={tmp_path / 'run'}"], **both)
    assert forbids(from_mine["terms"]) == {"tiny-teacher": False}


def test_sets_that_a_training_computes_first_are_bound_by_their_teacher(photos: Any, tmp_path: Path) -> None:
    store, _, _ = photos
    name = own_file(tmp_path)
    asked = {"store": store.url, "features": ["my-net"], "teachers": (name,), "on_miss": "compute", "settings": SMALL}
    with pytest.raises(BadInput, match="terms unknown to us"):
        train_command(out=tmp_path / "run", require_licence="commercial", **asked)
    assert store.list_features() == []
    summary = train_command(out=tmp_path / "run", require_licence="commercial", terms={"my-net": "mit"}, **asked)
    assert forbids(summary["terms"]) == forbids(recorded_terms(tmp_path / "run")) == {"my-net": False}


def test_json_carries_the_terms(photos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, options, _ = photos
    teacher = options.teachers[0].name
    for command in ("extract, dry", "extract", "train, dry", "train"):
        assert main([*COMMANDS[command](store.url, teacher, tmp_path / "out"), "--terms", "teacher=non-commercial:for us", "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[-1]["terms"] == {"teacher": {"licence": "for us", "non_commercial": True, "source": DECLARED}}
        if command in ("extract", "train"):
            assert (
                lines[0]["text"] == "licence of teacher: for us (NON-COMMERCIAL use only); read the licence that was declared with --terms"
            )


@pytest.mark.parametrize(("terms", "says"), [
    ({"other": "mit"}, "--terms names 'other', whose terms do not count here; those of these do: teacher"),
    ({"teacher": "GPL-3.0"}, "what 'GPL-3.0' allows is not known here; say apache-2.0"),
])  # fmt: skip
def test_declarations_that_mean_nothing_are_refused(photos: Any, terms: dict[str, str], says: str) -> None:
    _, options, tmp_path = photos
    with pytest.raises(BadInput, match=says):
        extract_features(replace(options, terms=terms))
    with pytest.raises(BadInput, match=says):
        train_command(store=options.store, out=tmp_path / "run", features=["teacher"], settings=SMALL, terms=terms)


def test_known_terms_cannot_be_declared_away(photos: Any, tmp_path: Path) -> None:
    _, options, _ = photos
    taken = imported(Path(options.teachers[0].name), tmp_path / "taken")
    asked = replace(options, teachers=(TeacherRequest(str(taken)),))
    with pytest.raises(BadInput, match=r"and these are: imported: official\.pth \(through taken\): FAIR"):
        extract_features(replace(asked, terms={"imported: official.pth": "mit"}))
    assert extract_features(asked)["terms"]["imported: official.pth (through taken)"] == OFFICIAL_EUPE._asdict()


def test_an_unknown_use_is_refused_when_the_request_is_made(photos: Any) -> None:
    _, options, _ = photos
    with pytest.raises(BadInput, match="unknown use that a licence has to allow 'military'"):
        replace(options, require_licence="military")
    with pytest.raises(BadInput, match="unknown use"):
        TrainOptions(RECIPE, "store", ("a",), "out", "photos", require_licence="military")  # type: ignore[arg-type]


def test_a_note_that_cannot_be_read_is_damage_and_not_a_free_licence(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    spec = resolve_teacher(options.teachers[0].name)
    note_terms(store.objects, spec.identity(), {"a": OFFICIAL_EUPE._asdict()})
    (note,) = (Path(store.url) / "teachers").rglob("terms-*.json")
    note.write_text("{")
    with pytest.raises(CacheDamaged, match="does not say a teacher's terms"):
        extract_features(options)
