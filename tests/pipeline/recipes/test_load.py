"""Recipes load strictly, and every value knows where it came from."""

from pathlib import Path

import pytest
from eupe_pipeline.pipeline.recipes.load import list_recipes, load_recipe, read_document, stages_of
from eupe_pipeline.pipeline.recipes.settings import parse_setting
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.recipe import TrainRecipe

SHIPPED = ["1-2", "1-2-3", "1-3", "2-only", "data-lvd", "data-metaclip", "demo", "eupe-stage1", "eupe-stage2", "eupe-stage3"]
SHIPPED += ["gamma-0", "gamma-1", "gamma-2", "permissive", "proxy-7b", "teachers-with-siglip2", "teachers-without-pelang"]


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_shipped_recipes_are_listed() -> None:
    assert list_recipes() == SHIPPED


@pytest.mark.parametrize(("stage", "values"), [
    (1, {"adapter.width": 1536, "optimizer.name": "lamb", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.02,
         "run.steps": 600_000, "run.batch_size": 1024, "teacher.source": "cached"}),
    (2, {"adapter.width": 3072, "optimizer.name": "adamw", "optimizer.learning_rate": 2e-5, "optimizer.weight_decay": 1e-4,
         "run.steps": 390_000, "run.batch_size": 8192, "student.sizes_px": [256]}),
    (3, {"adapter.width": 3072, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-5, "optimizer.weight_decay": 1e-4,
         "run.steps": 100_000, "run.batch_size": 4096, "student.sizes_px": [256, 384, 512], "teacher.sizes_px": [256, 384, 512],
         "teacher.source": "live"}),
])  # fmt: skip
def test_the_paper_recipes_hold_the_papers_values(stage: int, values: dict[str, object]) -> None:
    found = {key: value for key, value, _ in load_recipe(f"eupe-stage{stage}", stage=stage).rows()}
    shared = {"loss.patch_cosine": 0.9, "loss.patch_smooth_l1": 0.1, "loss.smooth_l1_beta": 1.0, "optimizer.warmup_share": 0.05,
              "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.clip_norm": 3.0}  # fmt: skip
    assert {key: found[key] for key in values | shared} == values | shared


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_value_that_a_paper_recipe_sets_is_marked_as_the_papers_or_ours(stage: int) -> None:
    origins = load_recipe(f"eupe-stage{stage}").origins
    assert {origin.split(":")[0] for origin in origins.values()} == {"paper", "ours", "default"}


def test_what_the_paper_does_not_state_is_never_called_the_papers() -> None:
    ours = ["loss.smooth_l1_beta", "optimizer.name", "optimizer.beta1", "optimizer.warmup_share", "optimizer.clip_norm", "precision"]
    for stage in (1, 2, 3):
        origins = load_recipe(f"eupe-stage{stage}").origins
        assert all(origins[key].startswith("ours: ") for key in ours)
    assert all(load_recipe("eupe-stage1").origins[key].startswith("ours: ") for key in ("run.steps", "optimizer.learning_rate"))


def test_a_setting_wins_and_is_named_as_the_origin() -> None:
    resolved = load_recipe("demo", stage=2, settings=["optimizer.learning_rate=3e-4", "student.options.registers=2"])
    assert resolved.recipe.optimizer.learning_rate == 3e-4
    assert resolved.recipe.student.options["registers"] == 2
    assert resolved.origins["optimizer.learning_rate"] == resolved.origins["student.options.registers"] == "--set"
    assert resolved.origins["student.options.layer_scale"].startswith("ours: ")


def test_of_two_settings_of_one_key_the_later_wins() -> None:
    assert load_recipe("eupe-stage2", settings=["seed=1", "seed=2"]).recipe.seed == 2


def test_every_resolved_value_has_one_origin() -> None:
    for name in SHIPPED:
        stages: list[int | None] = [*stages_of(read_document(name)[1])]
        for stage in stages or [None]:
            resolved = load_recipe(name, stage=stage)
            assert [key for key, _, _ in resolved.rows()] == list(resolved.origins)


def test_a_value_the_file_sets_without_a_word_about_it_has_the_file_as_origin(tmp_path: Path) -> None:
    resolved = load_recipe(write(tmp_path, "stage = 2\n[run]\nsteps = 5\n"))
    assert resolved.origins["run.steps"] == "file mine.toml"
    assert resolved.origins["run.batch_size"] == "default"
    assert resolved.recipe == TrainRecipe(stage=2, run=resolved.recipe.run)


def test_an_origin_of_a_table_holds_for_all_that_the_file_sets_in_it(tmp_path: Path) -> None:
    text = 'stage = 2\n[run]\nsteps = 5\nbatch_size = 4\n[origins]\nrun = "ours: small"\nrun.steps = "paper"\n'
    with pytest.raises(BadInput, match="not valid TOML"):
        load_recipe(write(tmp_path, text))
    resolved = load_recipe(write(tmp_path, text.replace('run.steps = "paper"\n', "")))
    assert (resolved.origins["run.steps"], resolved.origins["run.keep_checkpoints"]) == ("ours: small", "default")


@pytest.mark.parametrize(("text", "says"), [
    ("stage = 2\n[optimizer]\nlearnig_rate = 1e-3\n", r"'optimizer\.learnig_rate'; did you mean 'optimizer\.learning_rate'"),
    ("stage = 2\nsede = 1\n", "did you mean 'seed'"),
    ("stage = 9\n", r"mine\.toml: recipe value stage = 9"),
    ("stage = \n", "not valid TOML"),
    ('stage = 2\n[origins]\nseed = "paper"\n', r"\[origins\] speaks of seed, which the file does not set"),
    ('stage = 2\n[origins]\nstage = "mine"\n', "the origin of stage is 'mine'"),
    ('stage = 2\n[origins]\nstage = "ours:"\n', "the origin of stage is 'ours:'"),
    ("stage = 2\n[run]\nsteps = 0\n", "expected 1 to"),
    ('stage = 2\n[run]\nsteps = "5"\n', "run.steps is '5', wanted a whole number"),
])  # fmt: skip
def test_a_broken_file_is_refused_with_its_fault(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_names_the_nearest_and_lists_the_known() -> None:
    with pytest.raises(BadInput, match=r"did you mean 'eupe-stage2'.*demo, eupe-stage1"):
        load_recipe("eupe-stge2")
    with pytest.raises(BadInput, match="there is no recipe file no/such"):
        load_recipe("no/such.toml")


def test_the_stage_of_the_command_must_be_the_files() -> None:
    with pytest.raises(BadInput, match="is for stage 1, asked for stage 2"):
        load_recipe("eupe-stage1", stage=2)
    with pytest.raises(BadInput, match="holds stages 1, 2, 3; asked for none: pass --stage"):
        load_recipe("demo")


@pytest.mark.parametrize(("text", "table"), [
    ("a.b=1", {"a": {"b": 1}}),
    ("a = [1, 2]", {"a": [1, 2]}),
    ("a=lamb", {"a": "lamb"}),
    ("a=runs/stage1", {"a": "runs/stage1"}),
    ("a=/abs/run=1", {"a": "/abs/run=1"}),
    ('a="b c"', {"a": "b c"}),
    ("a=true", {"a": True}),
    ("a=1e-4", {"a": 1e-4}),
    ("a=./x", {"a": "./x"}),
])  # fmt: skip
def test_a_setting_is_toml_and_a_bare_word_is_a_string(text: str, table: dict[str, object]) -> None:
    assert parse_setting(text) == table


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a b=1", "a=[1", "a=1 2", "a=1\nb=2", "[a]=1"])
def test_a_setting_that_is_not_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--set"):
        parse_setting(text)


@pytest.mark.parametrize(("name", "stages"), [("2-only", [2]), ("1-2", [1, 2]), ("1-3", [1, 3]), ("1-2-3", [1, 2, 3])])
def test_the_ablations_hold_the_papers_stages_and_differ_in_what_they_say_alone(name: str, stages: list[int]) -> None:
    assert stages_of(read_document(name)[1]) == stages
    for stage in stages:
        base, found = load_recipe(f"eupe-stage{stage}"), load_recipe(name, stage=stage)
        differing = {key for (key, value, _), (_, other, _) in zip(found.rows(), base.rows(), strict=True) if value != other}
        own = {"optimizer.learning_rate", "run.steps", "run.batch_size", "run.prefetch_megabytes"} if (name, stage) == ("1-3", 3) else set()
        assert differing == ({"teacher.names"} if (stage == 1 or name == "2-only") else own)
        assert {key for key in found.origins if found.origins[key] != base.origins[key]} <= {"teacher.names", "student.init_from", *own}


def test_the_teacher_sets_name_their_teachers() -> None:
    with_siglip2 = load_recipe("teachers-with-siglip2", stage=1).recipe.teacher.names
    without_pelang = load_recipe("teachers-without-pelang", stage=1).recipe.teacher.names
    assert set(with_siglip2) - set(without_pelang) == {"siglip2-g"}
    assert set(without_pelang) < set(with_siglip2)


def test_a_recipe_extends_another_and_each_value_keeps_its_origin(tmp_path: Path) -> None:
    text = '[stage2]\nextends = "eupe-stage2"\n[stage2.optimizer]\nlearning_rate = 1e-3\n'
    resolved = load_recipe(write(tmp_path, text), stage=2)
    assert resolved.recipe.optimizer.learning_rate == 1e-3
    assert resolved.origins["optimizer.learning_rate"] == "file mine.toml"
    assert resolved.origins["optimizer.weight_decay"] == "paper"
    assert resolved.origins["student.options"] == "default"


def test_a_recipe_that_extends_an_extending_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="extend that one"):
        load_recipe(write(tmp_path, '[stage2]\nextends = "2-only"\n'), stage=2)


def test_a_mapping_that_is_set_as_a_whole_replaces_the_files_and_a_key_of_it_does_not() -> None:
    one = load_recipe("demo", stage=1, settings=["student.options.depth=4"]).recipe.student.options
    assert one["depth"] == 4
    assert one["width"] == 192
    assert load_recipe("demo", stage=1, settings=["student.options={depth = 4}"]).recipe.student.options == {"depth": 4}
    none = load_recipe("demo", stage=1, settings=["student.options={}"])
    assert none.recipe.student.options == {}
    assert (
        load_recipe("demo", stage=1, settings=["run={steps = 4}"]).recipe.run.batch_size
        == load_recipe("demo", stage=1).recipe.run.batch_size
    )
