"""Where a student comes from: parts of a run have the run's origin, evaluations follow the weights, a start passes its terms on."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.student.export.lineage import collect_terms, open_trained, run_title
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.probes.evaluation_records import write_record
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.encoders.build import build_encoder

from .test_export import make_run

TIMM = ExportOptions(Path("run"), Path("out"), ("timm",))


def run_with_parts(folder: Path, **more: Any) -> Path:
    """A finished run with an average, a best checkpoint and its random start, each of other weights."""
    run = make_run(folder, "vit-mini", 32, **more)
    (run / "summary.json").write_text(json.dumps({"loss": 0.25, "best_step": 40}))
    for seed, part in enumerate(("average", "best", "initial"), start=2):
        torch.manual_seed(seed)
        student = Student(build_encoder("vit-mini"), 8, {more.get("teacher", "dinov3-h+"): TargetSpec(6, 6, (1, 1))})
        save_model(student, run / part / "model", size_px=32, targets={})
    return run


def card_of(run: Path, out: Path, options: ExportOptions = TIMM) -> str:
    export(replace(options, run=run, out=out))
    return (out / "timm" / "README.md").read_text()


@pytest.mark.parametrize(("part", "says"), [
    ("average", "These weights are the moving average of the run's weights."),
    ("best", "These weights are the run's best checkpoint, of step 40."),
])  # fmt: skip
def test_a_part_of_a_run_is_exported_with_the_runs_origin(part: str, says: str, tmp_path: Path) -> None:
    run = run_with_parts(tmp_path / "run")
    card = card_of(run / part, tmp_path / "out")
    assert says in card
    assert "DINOv3 License" in card
    assert '"seed": 7' in card
    assert "feed" * 16 in card
    assert "Result of the run's last step" in card
    assert "not recorded" not in card
    record = json.loads((tmp_path / "out" / "timm" / "export.json").read_text())
    assert record["run"] == f"run/{part}"
    assert record["weights_sha256"] == file_sha256(run / part / "model" / "backbone.safetensors")


def test_the_runs_own_card_says_nothing_of_parts(tmp_path: Path) -> None:
    card = card_of(run_with_parts(tmp_path / "run"), tmp_path / "out")
    assert "These weights are" not in card
    assert "\nResult:" in card


def test_the_random_start_of_a_run_owes_nothing_to_its_teachers(tmp_path: Path) -> None:
    card = card_of(run_with_parts(tmp_path / "run") / "initial", tmp_path / "out")
    assert "Random weights: no teacher has shaped them." in card
    assert "DINOv3 License" not in card


def test_a_part_is_recognised_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_parts(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "best").symlink_to(run / "best")
    monkeypatch.chdir(run / "best")
    for path in (Path(), Path("../best"), Path("../average/../best"), run / "best", Path(os.path.relpath(run / "best"))):
        assert run_title(path) == "run/best"
        assert list(collect_terms(path, None)) == ["dinov3-h+"]
    assert collect_terms(tmp_path / "other" / "best", None) == {}  # there is no run around it: nothing is known, and nothing guessed


def test_a_run_of_its_own_inside_another_that_is_named_like_a_part_keeps_its_own_records(tmp_path: Path) -> None:
    outer = make_run(tmp_path / "run", "vit-mini", 32, teacher="clip-l")
    (outer / "best").mkdir()
    own = make_run(outer / "best", "vit-mini", 32)
    assert run_title(own) == "best"
    assert list(collect_terms(own, None)) == ["dinov3-h+"]


def test_through_the_proxy_a_part_reaches_its_teachers_too(tmp_path: Path) -> None:
    proxy = run_with_parts(tmp_path / "proxy", teacher="clip-l")
    taught_by = file_sha256(proxy / "average" / "model" / "backbone.safetensors")
    run = run_with_parts(tmp_path / "run", teacher="proxy", sha256=taught_by)
    assert list(collect_terms(run / "average", proxy / "average")) == ["clip-l (through proxy)"]
    with pytest.raises(CacheMismatch, match="is not the proxy"):
        collect_terms(run / "average", proxy)


def test_evaluations_follow_the_weights_that_they_measured(tmp_path: Path) -> None:
    run = run_with_parts(tmp_path / "run")
    sha256 = {part: open_trained(run / part).weights_sha256 for part in ("", "average", "best")}
    for number, (folder, measured) in enumerate([("", ""), ("", "average"), ("average", "average"), ("average", "best")]):
        write_record(
            run / folder, "knn", {"data": "x", "n": number, "model": {"weights_sha256": sha256[measured]}}, {"top1": 10.5 + number}, 1.0
        )
    cards = {part: card_of(run / part, tmp_path / f"out{part}") for part in ("", "average", "best")}
    found = {part: [n for n in range(4) if f'"top1": {10.5 + n}' in card] for part, card in cards.items()}
    assert found == {"": [0], "average": [1, 2], "best": [3]}


def start_from(run: Path, start: Path, sha256: str) -> Path:
    recorded = json.loads((run / "identities.json").read_text())
    (run / "identities.json").write_text(json.dumps({**recorded, "init_from": {"backbone.safetensors": sha256}}))
    (run / "recipe.json").write_text(json.dumps({"recipe": {"student": {"init_from": str(start)}}, "origins": {}}))
    return run


def test_a_run_that_began_with_published_weights_passes_their_terms_on(tmp_path: Path) -> None:
    torch.save(to_official(build_encoder("vit-mini").state_dict(), "vit-mini"), tmp_path / "official.pth")
    import_weights(tmp_path / "official.pth", tmp_path / "taken", 32)
    digest = file_sha256(tmp_path / "taken" / "model" / "backbone.safetensors")
    run = start_from(run_with_parts(tmp_path / "run", teacher="clip-l"), tmp_path / "taken", digest)
    for path in (run, run / "average"):
        terms = collect_terms(path, None)
        assert {name: one.non_commercial for name, one in terms.items()} == {"imported: official.pth": True, "clip-l": False}
    card = card_of(run, tmp_path / "out")
    assert "NON-COMMERCIAL" in card


def test_a_start_that_is_gone_or_another_is_said_to_be_unknown(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", "vit-mini", 32)
    run = start_from(make_run(tmp_path / "run", "vit-mini", 32, teacher="clip-l"), other, "0" * 64)
    assert [name.partition(" (")[0] for name in collect_terms(run, None)] == ["the weights it began with", "clip-l"]


def test_a_folder_inside_a_run_that_is_no_model_says_which_to_give(tmp_path: Path) -> None:
    run = run_with_parts(tmp_path / "run")
    step = run / "checkpoints" / "step-0000040"
    step.mkdir(parents=True)
    (step / "checkpoint.json").write_text("{}")
    with pytest.raises(BadInput, match=rf"it is the model's own folder: give the one around it, {run}"):
        open_trained(run / "model")
    with pytest.raises(BadInput, match=rf"give {run}, or {run}/best"):
        open_trained(step)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty holds no trained model .* finish that run first"):
        open_trained(tmp_path / "empty")


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="NOSUCH does not exist; give the folder of a finished run") as caught:
        open_trained(tmp_path / "NOSUCH")
    assert "finish that run" not in str(caught.value)


def test_of_a_folder_around_runs_the_first_three_are_named(tmp_path: Path) -> None:
    out = tmp_path / "distilled"
    run_with_parts(out / "vit-s" / "stage1")
    with pytest.raises(BadInput, match=rf"it is the folder of 1 run, give that: {out}/vit-s/stage1$"):
        open_trained(out)
    for name in ("vit-s/stage2", "vit-t/stage1", "vit-t/stage2"):
        make_run(out / name, "vit-mini", 32)
    (out / "store" / "x" / "model").mkdir(parents=True)
    (out / "store" / "eupe-store.json").touch()
    (out / "store" / "x" / "model" / "model.json").touch()
    with pytest.raises(BadInput, match=rf"folder of 4 runs, give one: {out}/vit-s/stage1, {out}/vit-s/stage2, {out}/vit-t/stage1, …$"):
        open_trained(out)


def test_an_unfinished_run_is_to_be_finished_whatever_lies_below_it(tmp_path: Path) -> None:
    run = run_with_parts(tmp_path / "run")
    (run / "model" / "model.json").unlink()
    with pytest.raises(BadInput, match=r"run holds no trained model .* finish that run first"):
        open_trained(run)


@pytest.mark.parametrize(("part", "recipe", "why"), [
    ("best", {"run": {"keep_best": False}}, "its run did not keep the best checkpoint (run.keep_best was off)"),
    ("average", {"student": {"ema": 0.0}}, "its run kept no moving average (student.ema was 0)"),
])  # fmt: skip
def test_a_part_that_the_run_never_kept_says_why(part: str, recipe: dict[str, Any], why: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32)
    (run / "recipe.json").write_text(json.dumps({"recipe": recipe, "origins": {}}))
    with pytest.raises(BadInput, match=re.escape(f"{run / part} does not exist: {why}; give {run}")):
        open_trained(run / part)


def test_a_part_that_was_to_be_kept_and_is_gone_is_only_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32)
    (run / "recipe.json").write_text(json.dumps({"recipe": {"run": {"keep_best": True}}, "origins": {}}))
    with pytest.raises(BadInput, match="best does not exist; give the folder of a finished run"):
        open_trained(run / "best")
