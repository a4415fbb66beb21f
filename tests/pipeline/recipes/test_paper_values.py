"""What a shipped recipe calls the paper's is what arXiv 2603.22387 states, and what the paper leaves open is called ours."""

import pytest
from eupe_pipeline.pipeline.recipes.load import FOLDER, list_recipes, load_recipe, read_document, stages_of

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
