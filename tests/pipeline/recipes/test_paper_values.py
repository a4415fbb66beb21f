"""What a shipped recipe calls the paper's is what arXiv 2603.22387 states, and what the paper leaves open is called ours."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from eupe_pipeline.pipeline.commands.main import cli
from eupe_pipeline.pipeline.recipes.load import FOLDER, cited_tables, list_recipes, load_recipe, read_document, stages_of
from eupe_pipeline.pipeline.recipes.paper import paper_table, paper_values, stated_at
from eupe_pipeline.pipeline.recipes.typed_tables import leaves
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.recipe import TeacherWeights
from eupe_pipeline.teachers.encoders.build import build_encoder

PAPER, OURS = "paper", "ours"
ALONE = (None,)


def told(name: str, stage: int | None = None) -> dict[str, tuple[object, str]]:
    """Value and kind of origin of every key of a recipe."""
    return {key: (value, origin.partition(":")[0]) for key, value, origin in load_recipe(name, stage=stage).rows()}


def every_recipe() -> list[tuple[str, int | None]]:
    """Each shipped recipe with each of its stages."""
    return [(name, stage) for name in list_recipes() for stage in stages_of(read_document(name)[1]) or ALONE]


@pytest.mark.parametrize(("name", "stage", "values"), [
    ("teachers-with-siglip2", 1, {"teacher.names": (["pecore-g", "siglip2-g", "dinov3-h+"], PAPER)}),
    ("teachers-without-pelang", 1, {"teacher.names": (["pecore-g", "dinov3-h+"], PAPER)}),
    ("1-2-3", 1, {"teacher.names": (["pecore-g", "pelang-g", "dinov3-h+"], PAPER)}),
    ("2-only", 2, {"teacher.names": (["pecore-g", "pelang-g", "dinov3-h+"], PAPER), "run.steps": (390_000, PAPER)}),
    ("1-3", 3, {"run.steps": (390_000, PAPER), "run.batch_size": (8192, PAPER), "optimizer.learning_rate": (2e-5, PAPER),
                "optimizer.weight_decay": (1e-4, OURS), "student.init_from": ("", OURS), "student.sizes_px": ([256, 384, 512], PAPER)}),
    ("1-2-3", 3, {"run.steps": (100_000, PAPER), "run.batch_size": (4096, PAPER), "optimizer.learning_rate": (1e-5, PAPER),
                  "optimizer.weight_decay": (1e-4, OURS)}),
    ("1-2", 2, {"run.steps": (390_000, PAPER), "run.batch_size": (8192, PAPER), "optimizer.learning_rate": (2e-5, PAPER),
                "optimizer.weight_decay": (1e-4, PAPER), "student.init_from": ("", OURS)}),
    ("eupe-stage1", None, {"adapter.width": (1536, PAPER), "student.init_from": ("", OURS), "optimizer.weight_decay": (0.02, OURS)}),
    ("eupe-stage2", None, {"adapter.width": (3072, PAPER), "student.init_from": ("", OURS), "optimizer.weight_decay": (1e-4, PAPER)}),
    ("eupe-stage3", None, {"adapter.width": (3072, PAPER), "optimizer.weight_decay": (1e-4, OURS)}),
    ("demo", 3, {"optimizer.weight_decay": (1e-4, OURS)}),
])  # fmt: skip
def test_a_value_is_the_papers_exactly_where_the_paper_states_it(
    name: str, stage: int | None, values: dict[str, tuple[object, str]]
) -> None:
    found = told(name, stage)
    assert {key: found[key] for key in values} == values


@pytest.mark.parametrize(("name", "stage"), every_recipe())
def test_no_recipe_says_of_what_the_paper_is_silent_about_that_it_is_the_papers(name: str, stage: int | None) -> None:
    silent = ("student.drop_path", "student.ema", "student.init_from", "optimizer.beta1", "optimizer.warmup_share", "optimizer.clip_norm")
    found = told(name, stage)
    assert [key for key in silent if found[key][1] == PAPER] == []
    assert stage != 3 or found["optimizer.weight_decay"][1] == OURS


def test_the_text_of_the_package_claims_no_silence_as_the_papers_none() -> None:
    package = FOLDER.parent.parent
    rooms = ("pipeline", "jobs", "student", "teachers", "storage")
    texts = {path: path.read_text() for room in rooms for path in package.glob(f"{room}/*.py")}
    assert [path.name for path, text in texts.items() if "paper: none" in text] == []
    of_normalisation = [path.name for path, text in texts.items() if "normalisation" in text and "(paper, section 3.2)" in text]
    assert of_normalisation == []


@pytest.mark.parametrize(("name", "stage"), every_recipe())
def test_every_value_that_a_shipped_recipe_calls_the_papers_stands_in_the_papers_file(name: str, stage: int | None) -> None:
    resolved = load_recipe(name, stage=stage)
    claims = [(key, value) for key, value, origin in resolved.rows() if origin == "paper"]
    assert name == "demo" or claims
    for key, value in claims:
        entries = [entry for entry in paper_values() if entry.key == key and resolved.recipe.stage in entry.stages]
        assert any(value in entry.any_of for entry in entries), f"{key} = {value!r}"
        assert all(entry.at.startswith(("section ", "Table ")) for entry in entries)


def test_what_an_ablation_sets_for_itself_stands_in_the_table_that_it_cites() -> None:
    cited = {name: cites.replace("Tables 7 and 8", "Table 7") for name, cites in cited_tables().items()}
    own = {
        ("2-only", 2): ["teacher.names"], ("1-3", 3): ["run.steps", "run.batch_size", "optimizer.learning_rate"],
        ("teachers-with-siglip2", 1): ["teacher.names"], ("teachers-without-pelang", 1): ["teacher.names"],
        ("proxy-7b", 1): ["teacher.names"], ("gamma-0", 2): ["teacher.weights.dinov3-h+.patch", "teacher.names"],
        ("gamma-1", 2): ["teacher.weights.dinov3-h+.patch"], ("gamma-2", 2): ["teacher.weights.dinov3-h+.patch"],
        ("data-metaclip", 1): ["teacher.names", "data.shares.metaclip", "data.shares.imagenet-1k"],
        ("data-lvd", 3): ["data.shares.lvd", "data.shares.imagenet-1k"],
    }  # fmt: skip
    for (name, stage), keys in own.items():
        values, origins = dict(leaves(load_recipe(name, stage=stage).recipe.to_dict())), load_recipe(name, stage=stage).origins
        for key in keys:
            assert origins[key] == "paper"
            assert any(cited[name] in places for places in stated_at(stage, key, values[key])), (name, key)


@pytest.mark.parametrize(("text", "says"), [
    ("run.steps = 390_001", r"run\.steps = 390001 is \"paper\", but the paper has 390000 \(section 4\.1\)"),
    ("optimizer.warmup_share = 0.05", r"states no optimizer\.warmup_share for stage 2"),
    ("adapter.width = 1536", r"adapter\.width = 1536 is \"paper\", but the paper has 3072"),  # stage 1's
    ('teacher.weights."dinov3-h+".patch = 0.5', r"0\.0 or 1\.0 or 2\.0 \(Table 10\)"),
    ('data.shares = { lvd = 0.8, imagenet-1k = 0.2 }', r"data\.shares\.lvd = 0\.8"),
    ("views.kind = 'whole'", "random_resized_crop"),
])  # fmt: skip
def test_a_recipe_that_says_paper_of_what_the_paper_does_not_state_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path, key = tmp_path / "mine.toml", text.partition(" = ")[0]
    path.write_text(f'stage = 2\n{text}\n[origins]\n{key} = "paper"\n')
    with pytest.raises(BadInput, match=says):
        load_recipe(str(path))
    path.write_text(f'stage = 2\n{text}\n[origins]\n{key} = "ours: a trial"\n')
    assert load_recipe(str(path)).recipe.stage == 2


def test_a_users_recipe_may_say_paper_of_what_the_paper_states_and_change_it_by_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'cites = "Table 10"\nstage = 2\nteacher.names = ["dinov3-h+", "pelang-g", "pecore-g"]\n[origins]\nteacher.names = "paper"\n'
    )
    assert load_recipe(str(path)).origins["teacher.names"] == "paper"
    assert load_recipe(str(path), settings=["teacher.names=[mine]"]).origins["teacher.names"] == "--set"


def test_recipe_ls_lists_each_recipe_with_the_table_that_it_is() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["recipe", "ls", "--json"]).stdout)
    assert listed["recipes"] == list_recipes()
    assert listed["cites"]["data-metaclip"] == "Table 9"
    assert listed["cites"]["gamma-2"] == "Table 10"
    assert listed["cites"]["proxy-7b"] == "Tables 7 and 8"
    assert {name for name, cites in listed["cites"].items() if cites == "ours"} == {"demo", "permissive"}


def test_each_recipe_says_its_table_in_its_text() -> None:
    for name, cites in cited_tables().items():
        text = (FOLDER / f"{name}.toml").read_text()
        assert cites == "ours" or (f'cites = "{cites}"' in text and "2603.22387" in text)


def test_the_data_ablations_are_the_mixtures_of_table_9_in_every_stage() -> None:
    for name, other in (("data-lvd", "lvd"), ("data-metaclip", "metaclip")):
        for stage in (1, 2, 3):
            assert load_recipe(name, stage=stage).recipe.data.shares == {"imagenet-1k": 0.1, other: 0.9}
        assert load_recipe(name, stage=1).recipe.teacher.names == ("pecore-g", "dinov3-h+")


def test_gamma_weights_dinov3s_patch_loss_and_no_other_term() -> None:
    for gamma in (0, 1, 2):
        recipe = load_recipe(f"gamma-{gamma}", stage=2)
        weights = recipe.recipe.teacher.target_weights(recipe.recipe.teacher.names)
        assert weights == {"pecore-g": TeacherWeights(1, 1), "pelang-g": TeacherWeights(1, 1), "dinov3-h+": TeacherWeights(1, gamma)}
        assert recipe.origins["run.steps"] == "ours: not stated for Table 10; that of stage 2"


def test_the_7b_proxy_is_dinov3s_vit_7b_by_its_dimensions_and_has_it_as_a_teacher() -> None:
    recipe = load_recipe("proxy-7b", stage=1).recipe
    with torch.device("meta"):
        encoder = build_encoder(recipe.student.architecture)
    assert recipe.teacher.names == ("pecore-g", "pelang-g", "dinov3-7b")
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e9, 2) == 6.72


def test_the_papers_tables_hold_a_figure_a_column_and_agree_where_they_repeat_one() -> None:
    assert paper_table(1).rows["EUPE-ViT-B"] == paper_table(2).rows["Stage 1&2&3"] == paper_table(3).rows["PEc&Dv3&PEl"]
    assert paper_table(3).rows["PEc&Dv3"] == paper_table(9).rows["90% LVD + 10% IN1k"]
    assert paper_table(1).rows["EUPE-ViT-B"] == paper_table(8).rows["ViT-H+, ViT-G"]
    assert paper_table(1).rows["PEspatial-B"]["IN1k-KNN"] == "no cls"
    assert paper_table(10).rows["2.0"]["SPair@224"] == 31.3
    with pytest.raises(BadInput, match=r"Table 11 .* not at hand"):
        paper_table(11)
