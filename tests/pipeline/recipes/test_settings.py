"""`--set` and TOML tables take every teacher's and dataset's name, and values of every type that a recipe has."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.pipeline.recipes.settings import parse_setting
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.recipe import TeacherWeights
from eupe_pipeline.teachers.registry.table import TEACHERS

AWKWARD = [
    "vit_huge_plus_patch16_dinov3.lvd1689m",
    "a.b.c",
    "timm:vit_base.x+y",
    "it's",
    'say "hi"',
    "run 7",
    "ärger",
    "x:y@0a1b",
    "cls",
    "patch",
]
NAMES = [*sorted(TEACHERS), *AWKWARD]


def set_to(*settings: str) -> Any:
    return load_recipe("eupe-stage1", settings=list(settings)).recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_key_is_taken_as_it_stands_or_in_quotes(name: str) -> None:
    for written in (name, json.dumps(name, ensure_ascii=False)):
        found = load_recipe("eupe-stage1", settings=[f"teacher.weights.{written}.patch=2.0"])
        assert found.recipe.teacher.weights == {name: TeacherWeights(1.0, 2.0)}
        assert found.origins[f"teacher.weights.{name}.patch"] == "--set"
        assert set_to(f"teacher.weights.{written}={{cls = 0.5}}").teacher.weights == {name: TeacherWeights(0.5, 1.0)}
        assert set_to(f"data.shares.{written}=1.0").data.shares == {name: 1.0}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_file_takes_the_same_names_in_quotes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    quoted = json.dumps(name, ensure_ascii=False)
    path.write_text(f"stage = 2\n[teacher.weights.{quoted}]\npatch = 2.0\n[data.shares]\n{quoted} = 1.0\n"
                    f'[origins]\nteacher.weights.{quoted}.patch = "ours: a trial"\n', encoding="utf-8")  # fmt: skip
    found = load_recipe(str(path))
    assert found.recipe.teacher.weights == {name: TeacherWeights(1.0, 2.0)}
    assert found.recipe.data.shares == {name: 1.0}
    assert found.origins[f"teacher.weights.{name}.patch"] == "ours: a trial"


def test_a_quoted_name_may_hold_an_equals_sign_and_the_end_of_another_key() -> None:
    assert set_to('teacher.weights."a=b.patch".cls=3').teacher.weights == {"a=b.patch": TeacherWeights(3.0, 1.0)}
    assert set_to("teacher.weights.'x.cls'.cls = 3").teacher.weights == {"x.cls": TeacherWeights(3.0, 1.0)}


def test_two_settings_of_one_teacher_are_joined_and_those_of_two_stay_apart() -> None:
    found = set_to("teacher.weights.dinov3-h+.patch=2.0", "teacher.weights.dinov3-h+.cls=0", "teacher.weights.siglip2-g.cls=3")
    assert found.teacher.weights == {"dinov3-h+": TeacherWeights(0.0, 2.0), "siglip2-g": TeacherWeights(3.0, 1.0)}


@pytest.mark.parametrize(("setting", "key", "value"), [
    ("seed=7", "seed", 7),
    ("run.steps=1_000", "run.steps", 1000),
    ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
    ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
    ("compile=true", "compile", True),
    ("precision=bf16", "precision", "bf16"),
    ('precision="bf16"', "precision", "bf16"),
    ("student.init_from=2024-07 run, best", "student.init_from", "2024-07 run, best"),
    ("student.init_from=7", "student.init_from", "7"),
    ("student.init_from=s3://runs/a=b", "student.init_from", "s3://runs/a=b"),
    ("student.init_from=''", "student.init_from", ""),
    ("student.sizes_px=[64, 128]", "student.sizes_px", [64, 128]),
    ("teacher.names=[pecore-g, dinov3-h+]", "teacher.names", ["pecore-g", "dinov3-h+"]),
    ('teacher.names=["pecore-g", "dinov3-h+"]', "teacher.names", ["pecore-g", "dinov3-h+"]),
    ("teacher.names=[]", "teacher.names", []),
    ("student.options.mlp=swiglu", "student.options.mlp", "swiglu"),
    ("student.options.depth=4", "student.options.depth", 4),
    ("student.options={depth = 4}", "student.options.depth", 4),
])  # fmt: skip
def test_a_value_of_every_type_arrives_as_it_was_meant(setting: str, key: str, value: object) -> None:
    assert {name: found for name, found, _ in load_recipe("eupe-stage1", settings=[setting]).rows()}[key] == value


@pytest.mark.parametrize(("setting", "says"), [
    ("teacher.weights.dinov3-h+.pach=2.0", r"'teacher\.weights\.dinov3-h\+\.pach'; did you mean 'teacher\.weights\.dinov3-h\+\.patch'"),
    ("teacher.weights.dinov3-h+=2.0", r"teacher\.weights\.dinov3-h\+ is 2\.0, wanted a table of cls, patch"),
    ("teacher.wieghts.dinov3-h.patch=2.0", r"'teacher\.wieghts'; did you mean 'teacher\.weights'"),
    ("optimzer.learning_rate=1e-3", "'optimzer'; did you mean 'optimizer'"),
    ("optimizer.learning_rat=1e-3", r"did you mean 'optimizer\.learning_rate'"),
    ("teacher.weights.dinov3-h+.patch=two", r"teacher\.weights\.dinov3-h\+\.patch is 'two', wanted a number"),
    ("teacher.weights.dinov3-h+.patch=-1", "not both 0"),
    ("teacher.weights..patch=1", "is not KEY=VALUE"),
    ('teacher.weights."a.patch=1', "is not KEY=VALUE"),
    ("data.shares.lvd=most", r"data\.shares\.lvd is 'most', wanted a number"),
    ("run.steps=1e5", r"run\.steps is 100000\.0, wanted a whole number"),
    ("compile=True", "compile is 'True', wanted true or false"),
    ("student.sizes_px=64", "student.sizes_px is 64, wanted a list"),
])  # fmt: skip
def test_a_wrong_key_or_value_names_what_was_meant(setting: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_recipe("eupe-stage1", settings=[setting])


@pytest.mark.parametrize(("text", "says"), [
    ("[teacher.weights]\ndinov3-h+ = { patch = 2.0 }\n", 'a name with dots or plus signs is quoted: "dinov3-h\\+"'),
    ("[teacher.weights.dinov3-h+]\npatch = 2.0\n", 'a name with dots or plus signs is quoted: "dinov3-h\\+"'),
    ("[teacher.weights.siglip2.v2]\npatch = 2.0\n", r'a name with dots is quoted: teacher\.weights\."siglip2\.v2"'),
    ("[data.shares]\nimagenet.v2 = 1.0\n", r'a name with dots is quoted: data\.shares\."imagenet\.v2"'),
    ('[teacher.weights."dinov3-h+"]\npach = 2.0\n', r"did you mean 'teacher\.weights\.dinov3-h\+\.patch'"),
])  # fmt: skip
def test_a_file_with_an_unquoted_name_or_a_wrong_key_says_how_it_is_written(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text(f"stage = 2\n{text}")
    with pytest.raises(BadInput, match=says):
        load_recipe(str(tmp_path / "mine.toml"))


def test_what_the_shape_does_not_know_is_split_at_its_dots() -> None:
    assert parse_setting("a.b = [1, 2]") == {"a": {"b": [1, 2]}}


def test_the_command_shows_the_weight_of_a_teacher_with_a_plus_sign(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "eupe-stage1", "--set", "teacher.weights.dinov3-h+.patch=2.0", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["recipe"]
    assert shown["teacher.weights.dinov3-h+.patch"] == {"value": 2.0, "origin": "--set"}
    assert shown["teacher.weights.dinov3-h+.cls"] == {"value": 1.0, "origin": "default"}
