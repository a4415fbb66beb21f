"""The views belong to the recipe: an extraction draws them, a training compares them, and each value knows where it came from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.recipes.load import list_recipes, load_recipe, read_document, stages_of
from eupe_pipeline.pipeline.recipes.views import chosen_views
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.photometric import Distortion
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.view_config import ViewsConfig

PAPER_VIEWS = ViewSpec(views_per_image=2, photometric="teacher_same")
SMALL = ["student.architecture=vit-mini", "student.sizes_px=[24]", "adapter.width=8", "run.steps=2", "run.batch_size=4", "device=cpu"]


def train_words(tiny: Any, out: Path, *settings: str) -> list[str]:
    words = [word for one in (*SMALL, *settings) for word in ("--set", one)]
    return ["train", "--stage", "2", "--store", tiny.store.url, "--data", "photos", "--features", "tiny-teacher", "--out", str(out), *words]


@pytest.mark.parametrize("name", [name for name in list_recipes() if name != "demo"])
def test_each_paper_recipe_has_the_papers_views_at_every_stage(name: str) -> None:
    stages: list[Any] = [*stages_of(read_document(name)[1])]
    for stage in stages or [None]:
        found = load_recipe(name, stage=stage)
        assert found.recipe.views.spec() == PAPER_VIEWS
        told = {key: origin.partition(":")[0] for key, origin in found.origins.items() if key.startswith("views.")}
        stated = {"views.kind", "views.photometric"} if found.recipe.stage != 1 else set()  # of stage 1 the paper names no augmentation
        assert {key for key, origin in told.items() if origin == "paper"} == stated
        assert {key for key, origin in told.items() if origin == "ours"} == told.keys() - stated
        assert found.recipe.views.distortion == Distortion()


def test_the_demos_views_are_those_that_an_extraction_draws_without_a_recipe() -> None:
    for stage in (1, 2, 3):
        assert load_recipe("demo", stage=stage).recipe.views.spec() == ViewSpec()


def test_the_command_wins_over_the_recipe_and_says_so() -> None:
    notes: list[Any] = []
    spec, told = chosen_views("eupe-stage2", None, notes.append, photometric="none", views_per_image=3, pixels_px=32)
    assert (spec.photometric, spec.views_per_image, spec.seed, spec.pixels and spec.pixels.size_px) == ("none", 3, 0, 32)
    assert told["photometric"] == {"value": "none", "origin": "--photometric, instead of the recipe's teacher_same"}
    assert told["scale"]["origin"] == "ours: not stated; DINOv3's public recipe"
    assert told["kind"]["origin"] == "paper"
    assert [note["text"].partition(":")[0] for note in notes] == ["views.views_per_image", "views.photometric"]


def test_without_a_recipe_the_views_are_as_they_always_were() -> None:
    spec, told = chosen_views(None, views_per_image=2)
    assert spec == ViewSpec(views_per_image=2)
    assert told["kind"] == {"value": "random_resized_crop", "origin": "default"}


def test_centre_views_over_a_recipe_have_no_distortion_and_a_contradiction_is_refused() -> None:
    assert chosen_views("eupe-stage2", kind="center")[0] == ViewSpec(kind="center")
    with pytest.raises(BadInput, match="centre views are never distorted"):
        chosen_views(None, kind="center", photometric="teacher_same")


def test_stages_with_different_views_want_one_picked(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text("[stage1.views]\nscale = [0.5, 1.0]\n[stage2.views]\nscale = [0.2, 1.0]\n")
    with pytest.raises(BadInput, match="pick one with --stage, of 1, 2"):
        chosen_views(str(path))
    assert chosen_views(str(path), 2)[0].scale == (0.2, 1.0)


@pytest.mark.parametrize(("text", "says"), [
    ("[views]\nscale = [0.3]\n", r"views\.scale = \[0\.3\] is not the two numbers"),
    ("[views]\nscale = [0.9, 0.3]\n", "recipe table views: scale must lie in"),
    ('[views]\nphotometric = "teacher"\n', "did you mean 'teacher_same'"),
    ("[views]\nflip_probabilty = 0.5\n", r"'views\.flip_probabilty'; did you mean 'views\.flip_probability'"),
    ("[views.distortion]\nblur = 0.5\n", r"did you mean 'views\.distortion\.blur"),
    ("[views.distortion]\nblur_probability = 2.0\n", r"must lie in \[0, 1\]"),
])  # fmt: skip
def test_a_wrong_views_table_is_refused_with_its_fault(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text(f"stage = 2\n{text}")
    with pytest.raises(BadInput, match=says):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(("stated", "theirs", "differing"), [
    (ViewsConfig(), ViewSpec(photometric="teacher_same"), {}),
    (ViewsConfig(photometric="none", distortion=Distortion()), ViewSpec(), {}),
    (ViewsConfig(photometric="teacher_same"), ViewSpec(), {"photometric": ("none", "teacher_same")}),
    (ViewsConfig(views_per_image=2, seed=1), ViewSpec(views_per_image=7, seed=9), {}),
    (ViewsConfig(scale=(0.2, 1.0)), ViewSpec(), {"scale": ([0.32, 1.0], [0.2, 1.0])}),
    (ViewsConfig(flip_probability=0.0), ViewSpec(), {"flip_probability": (0.5, 0.0)}),
    (ViewsConfig(kind="center"), ViewSpec(), {"kind": ("random_resized_crop", "center")}),
    (ViewsConfig(scale=(0.2, 1.0), photometric="none"), ViewSpec(kind="center"), {}),
    (ViewsConfig(kind="center", photometric="teacher_same"), ViewSpec(kind="center"), {}),
    (ViewsConfig(photometric="teacher_same", distortion=Distortion(blur_probability=0.1)), PAPER_VIEWS,
     {"distortion.blur_probability": (0.5, 0.1)}),
])  # fmt: skip
def test_views_differ_in_what_is_stated_alone(stated: ViewsConfig, theirs: ViewSpec, differing: dict[str, object]) -> None:
    assert stated.differences(theirs) == differing


def test_train_refuses_a_set_of_other_views_unless_they_are_said_to_be_meant(
    tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        assert main([*train_words(tiny_store, tmp_path / "run"), *more]) == 2
        said = capsys.readouterr().err
        assert "views.photometric is 'none', the recipe has 'teacher_same'" in said
        assert '--set views.photometric="none"' in said
        assert not (tmp_path / "run").exists()
    meant = train_words(tiny_store, tmp_path / "run", "views.photometric=none")
    assert main(meant) == 0
    recorded = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recorded["recipe"]["views"]["photometric"] == "none"
    assert recorded["origins"]["views.photometric"] == "--set"
    assert "views" not in recorded["decisive"]


def test_a_run_whose_record_has_no_views_goes_on_with_what_it_was_begun_on(tiny_store: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(train_words(tiny_store, out, "views.photometric=none")) == 0
    record = json.loads((out / "recipe.json").read_text())
    del record["recipe"]["views"]
    (out / "recipe.json").write_text(json.dumps(record))
    (out / "summary.json").unlink()
    assert main(train_words(tiny_store, out)) == 0
    assert json.loads((out / "recipe.json").read_text())["recipe"]["views"] == {}


def test_an_extraction_by_a_recipe_draws_its_views_and_a_training_takes_them(
    tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    place = ["--store", str(tmp_path / "store"), "--data", "photos"]
    common = [*place, "--teacher", str(tiny_store.teacher_run), "--recipe", "eupe-stage2", "--json"]
    assert main(["extract-features", *common, "--workers", "0", "--views", "1", "--shard-images", "8"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["view_values"]["photometric"] == {"value": "teacher_same", "origin": "paper"}
    assert found["view_values"]["views_per_image"] == {"value": 1, "origin": "--views, instead of the recipe's 2"}
    reader = FeatureStore.open(str(tmp_path / "store")).features(found["features"]["teacher"])
    assert reader.views.spec == ViewSpec(photometric="teacher_same")
    words = [word for one in SMALL for word in ("--set", one)]
    assert main(["train", "--stage", "2", *place, "--features", reader.key, "--out", str(tmp_path / "run"), *words]) == 0
