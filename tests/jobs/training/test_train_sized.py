"""Stage 3 from a cache: one feature set of the proxy per drawn size, equal to the proxy beside the student, refused where a set lacks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.data import cached_targets, open_parts
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.targets import CachedTargets, LiveTargets
from eupe_pipeline.student.model.draws import choose_size
from eupe_pipeline.student.model.recipe import RunConfig, TeacherConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.encoders.tokens import Tokens

from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses

SIZES = (24, 32, 16)
STUDENT_SIZES = replace(RECIPE.student, sizes_px=(16, 24, 32))
STAGE3 = replace(
    RECIPE, stage=3, student=STUDENT_SIZES, teacher=TeacherConfig("cached", SIZES), run=RunConfig(12, 6, checkpoint_every=3, log_every=1)
)
LIVE3 = replace(STAGE3, teacher=TeacherConfig("live", SIZES))
Sized = tuple[FeatureStore, dict[str, str]]


@pytest.fixture(scope="module")
def sized(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Sized:
    """A store with the teacher's sets of three sizes over the same views (the first one's statistics), and others that do not fit."""
    store = FeatureStore.create(str(tmp_path_factory.mktemp("sized") / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    options = ExtractOptions(
        store.url, "photos", (TeacherRequest(str(tiny_store.teacher_run), size_px=24),), ViewSpec(views_per_image=2, seed=3), 8, "fp32",
        statistics_batches=2, workers=0, batch_size=1,
    )  # fmt: skip

    def extract(size: int, **other: Any) -> str:
        request = TeacherRequest(str(tiny_store.teacher_run), size_px=size)
        return str(extract_features(replace(options, teachers=(request,), **other))["features"]["teacher"])

    keys = {"24": extract(24)}
    same = {"statistics_from": (keys["24"],)}
    keys |= {str(size): extract(size, **same) for size in (16, 32)}
    keys |= {f"{size}-some": extract(size, tokens_per_view=3, **same) for size in (16, 24)}
    keys |= {f"{size}-int8": extract(size, codec="int8", **same) for size in SIZES}
    keys["32-own"] = extract(32, statistics_batches=1)
    return store, keys


def run(sized: Sized, out: Path, recipe: TrainRecipe = STAGE3, names: tuple[str, ...] = ("16", "24", "32"), **more: Any) -> dict[str, Any]:
    store, keys = sized
    return train(recipe, store, [keys[name] for name in names], data="photos", out=out, **more)


def test_each_step_reads_the_size_that_a_live_proxy_would_draw_and_its_losses_are_bit_equal(
    sized: Sized, tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneByOne(LiveTargets):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, forward_batch=1, **kwargs)

    monkeypatch.setattr("eupe_pipeline.jobs.training.train.LiveTargets", OneByOne)
    run(sized, tmp_path / "cached")
    run(sized, tmp_path / "live", LIVE3, ("24",), proxy=tiny_store.teacher_run)
    cached, live = read_metrics(tmp_path / "cached"), read_metrics(tmp_path / "live")
    drawn = [choose_size(0, "teacher", step, SIZES) for step in range(12)]
    assert [line["sizes_px"]["teacher"] for line in cached] == drawn
    assert set(drawn) == set(SIZES)
    assert [line["sizes_px"] for line in cached] == [line["sizes_px"] for line in live]
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")
    models = [(tmp_path / name / "model" / "backbone.safetensors").read_bytes() for name in ("cached", "live")]
    assert models[0] == models[1]


def test_int8_sets_of_each_size_give_nearly_the_patch_losses_of_fp32_ones(sized: Sized, tmp_path: Path) -> None:
    run(sized, tmp_path / "exact")
    run(sized, tmp_path / "int8", names=("16-int8", "24-int8", "32-int8"))
    exact, int8 = ([line["losses"]["teacher"]["patch"] for line in read_metrics(tmp_path / name)] for name in ("exact", "int8"))
    assert int8 == pytest.approx(exact, abs=2e-3)
    assert int8 != exact


def test_a_stopped_run_goes_on_bit_equal_with_several_students_whatever_the_order_of_the_sets(sized: Sized, tmp_path: Path) -> None:
    students = {"students": ("vit-mini", "eupe_vitt16")}
    recipe = replace(STAGE3, student=replace(STUDENT_SIZES, options={"depth": 1}), run=replace(STAGE3.run, steps=5))
    recipe = replace(recipe, student=replace(recipe.student, sizes_px=(16, 32)))
    run(sized, tmp_path / "whole", recipe, **students)
    with pytest.raises(Interrupted, match="stopped after step 2 of 5"):
        run(sized, tmp_path / "run", recipe, on_event=interrupt_after(2), **students)
    run(sized, tmp_path / "run", recipe, ("32", "16", "24"), **students)
    for name in students["students"]:
        assert losses(tmp_path / "run" / name) == losses(tmp_path / "whole" / name)


def test_the_run_records_the_set_of_each_size_and_goes_on_with_no_other(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(sized, tmp_path / "run", on_event=interrupt_after(2))
    recorded = json.loads((tmp_path / "run" / "identities.json").read_text())["targets"]["teacher"]
    assert [(row["size_px"], row["features"]) for row in recorded["by_size"]] == [(str(size), sized[1][str(size)]) for size in SIZES]
    assert recorded["features"] == sized[1]["24"]
    with pytest.raises(CacheMismatch, match="by_size"):
        run(sized, tmp_path / "run", names=("16-int8", "24", "32"))


def test_a_size_without_a_set_is_refused_with_the_command_that_makes_it_before_a_folder_exists(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"teacher at 32 px, made by `extract-features .*--teacher-size teacher=32 .*--statistics-from teacher@"
    ):
        run(sized, tmp_path / "run", names=("16", "24"))
    assert not (tmp_path / "run").exists()


def test_a_set_of_a_size_that_is_not_drawn_and_several_of_one_size_are_refused(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is of 32 px, which is none of teacher\.sizes_px \(16, 24\)"):
        run(sized, tmp_path / "run", replace(STAGE3, teacher=TeacherConfig("cached", (16, 24))))
    with pytest.raises(BadInput, match=r"several feature sets of \d\d px over photos@\w+; give one's key"):
        train(STAGE3, sized[0], ["teacher"], data="photos", out=tmp_path / "run")


def test_sets_of_two_normalisations_are_refused(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match=r"(?s)statistics.*--statistics-from teacher@"):
        run(sized, tmp_path / "run", names=("16", "24", "32-own"))


def test_sampled_tokens_train_where_the_grids_coincide_and_are_refused_where_they_cannot(sized: Sized, tmp_path: Path) -> None:
    one = replace(STAGE3, student=replace(STUDENT_SIZES, sizes_px=(16,)), teacher=TeacherConfig("cached", (16,)))
    run(sized, tmp_path / "one", one, ("16-some",))
    assert len(losses(tmp_path / "one")) == 12
    with pytest.raises(BadInput, match=r"draws the student's size and the teachers' apart"):
        run(sized, tmp_path / "run", replace(STAGE3, teacher=TeacherConfig("cached", (16, 24))), ("16", "24-some"))
    assert not (tmp_path / "run").exists()


def test_a_size_that_is_named_twice_is_refused(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="names a size twice"):
        run(sized, tmp_path / "run", replace(STAGE3, teacher=TeacherConfig("cached", (16, 16))))


def test_following_or_computing_sets_of_several_sizes_is_refused(sized: Sized, tmp_path: Path) -> None:
    store, keys = sized
    with pytest.raises(BadInput, match="leave --follow and --on-miss compute out"):
        plan_training(TrainOptions(STAGE3, store.url, (keys["16"],), tmp_path / "run", "photos", follow_s=1.0))


@pytest.mark.parametrize("codec", ["", "-int8"])
def test_the_batch_of_a_step_holds_the_tokens_of_its_size_in_one_memory(sized: Sized, codec: str) -> None:
    store, keys = sized
    part = open_parts(store, [keys[f"{size}{codec}"] for size in SIZES], "photos", {}, sizes_px=SIZES)[0]
    source = cached_targets([part], seed=7)
    memory = source.allocate(8)
    for step in range(12):
        size, rows = choose_size(7, "teacher", step, SIZES), np.random.default_rng(step).permutation(48)[:8]
        arrays = source.at_step(memory, step)
        source.fill(rows[:3], arrays, 0)
        source.fill(rows[3:], arrays, 3)
        of_size = CachedTargets(part.by_size[size])
        alone = of_size.allocate(8)
        of_size.fill(rows, alone, 0)
        tokens, expected = source.resolve(arrays)["teacher"], of_size.resolve(alone)["teacher"]
        assert isinstance(tokens, Tokens)
        assert isinstance(expected, Tokens)
        assert tokens.cls_BD is not None
        assert expected.cls_BD is not None
        assert source.inputs_px(step) == {"teacher": size}
        assert torch.equal(tokens.patch_BHWD, expected.patch_BHWD)
        assert torch.equal(tokens.cls_BD, expected.cls_BD)


def test_the_plan_counts_all_sets_and_the_mean_of_their_bytes(sized: Sized, tmp_path: Path) -> None:
    store, keys = sized
    chosen = tuple(keys[str(size)] for size in SIZES)
    plan = plan_training(TrainOptions(STAGE3, store.url, chosen, tmp_path / "run", "photos"))
    assert set(plan["features"]) == set(chosen)
    reader = store.features(keys["24"])
    cls, patch = reader.cls_dim or 0, reader.patch_dim
    of_cls = reader.empty(1).cls
    cls_bytes = 0 if of_cls is None else of_cls.nbytes
    tokens = [reader.grid[0] * reader.grid[1] for reader in (store.features(key) for key in chosen)]
    assert cls
    assert plan["reading"]["target_bytes_a_view"] == round(sum(cls_bytes + 4 * patch * count for count in tokens) / 3)
