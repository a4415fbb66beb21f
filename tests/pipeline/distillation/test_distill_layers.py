"""`distill --layers --layer-weight`: inner blocks are cached, weighted where the teachers' own tokens are learnt, counted and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
from eupe_pipeline.pipeline.distillation.options import DistillOptions
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.training.run_folder import read_metrics

from tests.conftest import make_teacher

from .conftest import Command


@pytest.fixture
def runs_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules as they are, but for how long a run at least is."""
    monkeypatch.setattr(scaling, "LEAST_STEPS", 8)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)


def call(photos: Path, teacher: Path, out: Path, *more: object) -> list[object]:
    words = ["distill", photos, "--teacher", teacher, "--student", "vit-mini", "--out", out, "--workers", 0, "--export", "none"]
    return [*words, "--layers", "1", *more]


def learnt(run: Path) -> set[str]:
    return {name for line in read_metrics(run) for name in line.get("losses", {})}


def plan_of(result: dict[str, Any]) -> dict[str, Any]:
    return dict(next(event for event in result["events"] if event["event"] == "plan"))


@pytest.mark.usefixtures("runs_of_seconds")
def test_by_rule_the_recipe_and_its_command_have_the_layers_and_their_weights(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command
) -> None:
    words = call(photos, teacher_run, tmp_path / "run", "--layer-weight", "teacher/1=0.5")
    result = command(*words)
    (key,) = result["feature_sets"]
    layout = FeatureStore.open(str(tmp_path / "store")).features(key).layout
    assert layout.layers == (1,)
    assert learnt(tmp_path / "run" / "vit-mini" / "stage2") == {"teacher", "teacher/1"}
    assert plan_of(result)["bytes"] == 80 * layout.view_bytes
    file = tmp_path / "run" / "recipes" / "vit-mini.toml"
    saved = load_recipe(str(file), stage=2)
    assert saved.recipe.teacher.layers == {"teacher/1": 0.5}
    assert saved.origins["teacher.layers.teacher/1"] == "ours: asked for"
    shown = plan_of(result)["decisions"]
    assert shown["extract"]["layers"] == {"value": [1], "origin": "ours: asked for"}
    assert shown["vit-mini, stage 2"]["teacher.layers.teacher/1"]["value"] == 0.5
    (train,) = result["commands"]
    assert "--layer-weight" not in train, "the file says it"
    again = command(*words)
    assert not [event for event in again["events"] if event["event"] == "step"]
    for more, missing in ((["--layer-weight", "1=1"], 0), (["--layers", "2"], 80)):
        other = command(*call(photos, teacher_run, tmp_path / "other", *more), "--dry-run")
        assert other["extraction"]["teacher"]["missing"] == missing, "tokens that the store holds are taken where they have the layers"


def test_a_recipe_has_layers_and_weights_of_its_own_and_the_command_s_go_over_them(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace("[stage2]", "layers = [1]\n[stage2]", 1) + "\n[stage2.teacher.layers]\n1 = 0.25\n")
    base = [word for word in call(photos, teacher_run, tmp_path / "run") if word not in ("--layers", "1")]
    planned = command(*base, "--recipe", recipe, "--dry-run")
    assert planned["decisions"]["vit-mini, stage 2"]["teacher.layers.1"]["value"] == 0.25
    result = command(*base, "--recipe", recipe, "--layer-weight", "1=2")
    assert learnt(tmp_path / "run" / "vit-mini" / "stage2") == {"teacher", "teacher/1"}
    record = json.loads((tmp_path / "run" / "vit-mini" / "stage2" / "recipe.json").read_text())
    assert record["recipe"]["teacher"]["layers"] == {"1": 2.0}
    (train,) = result["commands"]
    assert train.endswith("--layer-weight 1=2.0")
    assert command(*train.split()[1:], "--dry-run")["recipe"]["teacher.layers.1"]["value"] == 2.0
    for words, text in (
        (["--layer-weight", "1=3"], "layer_weights was {'1': 2.0}, now {'1': 3.0}"),
        (["--layers", "1"], "layers was None"),
    ):
        assert main([str(word) for word in (*base, "--recipe", recipe, *words)]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("runs_of_seconds")
def test_a_proxy_learns_the_layers_and_the_student_learns_the_proxy_s_final_tokens(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command
) -> None:
    second = tmp_path / "second"
    make_teacher(second, seed=2)
    more = ["--teacher", second, "--proxy", "vit-mini", "--stages", "1,2", "--layer-weight", "second/1=1"]
    result = command(*call(photos, teacher_run, tmp_path / "run", *more))
    notes = [str(event["text"]) for event in result["events"] if event["event"] == "note"]
    assert "layer 1 of teacher is cached, and no weight asks for it: --layer-weight 1=1 would" in notes
    assert learnt(tmp_path / "run" / "proxy") == {"teacher", "second", "second/1"}
    assert learnt(tmp_path / "run" / "vit-mini" / "stage2") == {"proxy"}
    store = FeatureStore.open(str(tmp_path / "store"))
    layers = {key.partition("@")[0]: store.features(key).layout.layers for key in result["feature_sets"]}
    assert layers == {"teacher": (1,), "second": (1,), "proxy": ()}


@pytest.mark.parametrize(("words", "text"), [
    (["--layers", "7"], "teacher teacher has 2 blocks, and layer 7 was asked for"),
    (["--layer-weight", "2=1"], "gives a weight to block 2, which no feature set stores"),
    (["--layer-weight", "other/1=1"], "names 'other/1', but the feature sets are of teacher"),
    (["--layer-weight", "1=-1"], "≥ 0"),
])  # fmt: skip
def test_what_no_teacher_gives_is_refused_before_anything_is_computed(
    photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    for more in ([], ["--recipe", recipe]):
        asked = [str(word) for word in (*call(photos, teacher_run, tmp_path / "run", *words), *more)]
        assert main(asked) == 2
        assert text in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.toml"))
    assert not (tmp_path / "store" / "features").exists() or not list((tmp_path / "store" / "features").iterdir())


def test_a_request_that_cannot_be_is_refused_when_it_is_made(tmp_path: Path) -> None:
    one = (TeacherRequest("efficientnet-lite0"),)
    for values in ({"layers": (0,)}, {"layers": (1, 1)}, {"layers": "12"}, {"layer_weights": {"x": 1.0}}):
        with pytest.raises(BadInput, match=r"block|layer"):
            DistillOptions("photos", tmp_path, one, ("vit-mini",), **values)
    assert DistillOptions("photos", tmp_path, one, ("vit-mini",), layers=(8, 4)).layers == (4, 8)
