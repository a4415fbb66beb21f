"""Held-out images are never drawn, whatever the run; the share is part of what a run is; and a share that cannot serve is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.training.data import open_parts, run_order
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.hold_out import RULE, held_out_images, hold_out_ranks, share_of_rank
from eupe_pipeline.storage.images.subsets import ImageSubset
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig, TrainRecipe

from ..training_request import train, train_command
from .test_train import RECIPE, losses
from .test_train_mixture import SHARES, mixed  # noqa: F401  # a fixture

SHARE = 0.25
HELD = replace(RECIPE, data=DataConfig(hold_out=SHARE))
BATCH = RECIPE.run.batch_size


def drawn(order: Any, steps: int, ranks: int = 1) -> list[int]:
    return [
        int(image) for step in range(steps) for rank in range(ranks) for image in order.batch(step, BATCH, rank, ranks).image_B
    ]  # fmt: skip


@pytest.mark.parametrize("data", [{"order": "global"}, {"order": "shards"}, {"order": "global", "replace_failed": True}])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_epoch_draws_every_other_image_once_and_no_held_out_one(tiny_store: Any, data: dict[str, Any], ranks: int) -> None:
    parts = open_parts(tiny_store.store, ["tiny-teacher"], "photos", {})
    held = held_out_images(tiny_store.store.dataset("photos"), SHARE)
    order = run_order(replace(RECIPE, data=DataConfig(hold_out=SHARE, **data)), parts, tiny_store.store, None)
    kept = sorted(set(range(24)) - set(held.tolist()))
    assert 0 < len(held) < 24
    assert order.epoch_length == len(kept)
    seen = drawn(order, len(kept), ranks)
    for epoch in range(BATCH):
        assert sorted(seen[epoch * len(kept) : (epoch + 1) * len(kept)]) == kept


def test_failed_images_and_those_outside_of_a_subset_stay_out_too(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    dataset = store.dataset("photos")
    ImageSubset.create(store.objects, "most", dataset, np.arange(24) % 4 != 0, {})
    held = set(held_out_images(dataset, SHARE).tolist())
    parts = open_parts(store, ["tiny-gaps"], "photos", {}, subsets=["most"])
    order = run_order(HELD, parts, store, None)
    assert set(drawn(order, 24)) == {image for image in range(24) if image % 4} - held - {5}


def test_in_a_mixture_each_dataset_holds_out_the_same_ids(mixed: FeatureStore) -> None:  # noqa: F811
    recipe = replace(RECIPE, data=DataConfig(SHARES, hold_out=SHARE))
    parts = open_parts(mixed, ["teacher"], "", SHARES)
    few, many = (set(held_out_images(mixed.dataset(name), SHARE).tolist()) for name in ("few", "many"))
    ids_few, ids_many = mixed.dataset("few").ids(0, 6), mixed.dataset("many").ids(0, 20)
    assert few
    assert {ids_few[image] for image in few} == {ids_many[image] for image in many} & set(
        ids_few
    )  # the larger one is the smaller one, grown
    assert set(drawn(run_order(recipe, parts, mixed, None), 60)) == (set(range(6)) - few) | {6 + n for n in set(range(20)) - many}


def seen_in_training(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    seen: set[int] = set()
    plan = Stream.plan

    def noting(self: Stream, step: int) -> Any:
        found = plan(self, step)
        seen.update(found.indices.image_B.tolist())
        return found

    monkeypatch.setattr(Stream, "plan", noting)
    return seen


@pytest.mark.parametrize(("stage", "more"), [(1, {}), (2, {"students": ("vit-mini", "eupe_vitt16")}), (3, {"proxy": True})])
def test_no_stage_and_no_student_sees_them(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, more: dict[str, Any]
) -> None:
    seen = seen_in_training(monkeypatch)
    recipe = replace(HELD, stage=stage, run=replace(RECIPE.run, steps=5))
    if more.get("students"):
        recipe = replace(recipe, student=replace(RECIPE.student, options={}, sizes_px=(16,)), run=replace(recipe.run, steps=3))
    if more.get("proxy"):
        recipe, more = replace(recipe, teacher=TeacherConfig("live", (16, 24))), {"proxy": tiny_store.teacher_run}
    train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run", **more)
    assert seen
    assert not seen & set(held_out_images(tiny_store.store.dataset("photos"), SHARE).tolist())


def test_the_share_is_recorded_and_a_run_goes_on_with_no_other(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    dataset, out = tiny_store.store.dataset("photos"), tmp_path / "run"

    def run(recipe: TrainRecipe, out: Path) -> dict[str, Any]:
        return train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=out, on_event=on_event)

    run(HELD, out)
    held = len(held_out_images(dataset, SHARE))
    recorded = json.loads((out / "recipe.json").read_text())
    assert recorded["recipe"]["data"]["hold_out"] == recorded["decisive"]["data"]["hold_out"] == SHARE
    assert json.loads((out / "identities.json").read_text())["hold_out"] == {"rule": RULE, "images": {dataset.key: held}}
    assert f"holds out {held} of 24 images of {dataset.key}" in next(event["text"] for event in seen if event["event"] == "note")
    start = next(event for event in seen if event["event"] == "start")
    assert (start["images"], start["excluded_images"]) == (24 - held, held)
    assert run(HELD, out)["already"] is True
    for other in (0.0, 0.3):
        with pytest.raises(CacheMismatch, match=r"holds a run with another recipe: .*hold_out"):
            run(replace(HELD, data=DataConfig(hold_out=other)), out)
    run(RECIPE, tmp_path / "plain")
    with pytest.raises(CacheMismatch, match=r"holds a run with another recipe: .*hold_out"):
        run(HELD, tmp_path / "plain")


def test_without_a_share_a_run_is_and_records_what_it_always_did(tiny_store: Any, tmp_path: Path) -> None:
    for name, recipe in (("plain", RECIPE), ("none", replace(RECIPE, data=DataConfig(hold_out=0.0)))):
        train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / name)
    assert losses(tmp_path / "plain") == losses(tmp_path / "none")
    recorded = json.loads((tmp_path / "none" / "recipe.json").read_text())
    assert "hold_out" not in recorded["decisive"]["data"]
    assert set(json.loads((tmp_path / "none" / "identities.json").read_text())) == {"targets", "views", "init_from"}


def test_a_start_that_has_seen_the_held_out_images_gives_a_warning(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    short = replace(RECIPE, run=replace(RECIPE.run, steps=1))

    def run(name: str, share: float, start: str = "") -> list[str]:
        recipe = replace(short, data=DataConfig(hold_out=share), student=replace(short.student, init_from=start and str(tmp_path / start)))
        seen.clear()
        train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / name, on_event=on_event)
        return [str(event["text"]) for event in seen if event["event"] == "warning" and "hold_out" in str(event["text"])]

    assert not run("first", SHARE)
    assert not run("second", SHARE, "first")
    (said,) = run("third", 0.4, "first")
    assert "was trained with data.hold_out = 0.25" in said
    (said,) = run("fourth", 0.4, "third")  # two stages back
    assert f"{tmp_path / 'first'} was trained with data.hold_out = 0.25" in said
    assert not run("random", 0.4, "first/initial")


def test_a_share_that_selects_no_image_or_every_image_is_refused_with_numbers(tiny_store: Any, tmp_path: Path) -> None:
    shares = sorted(share_of_rank(int(rank)) for rank in hold_out_ranks(tiny_store.store.dataset("photos").ids(0, 24)))
    for share, says in (
        (shares[0] / 2, f"holds out none of 24 images .* lies at {shares[0]:.3g}"),
        (1 - 1e-9, "holds out 24 of 24 images"),
    ):
        recipe = replace(RECIPE, data=DataConfig(hold_out=share))
        with pytest.raises(BadInput, match=says):
            train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for share in (1.0, -0.1, 1.5):
        with pytest.raises(BadInput, match=r"data.hold_out = .*such as 0.01 for one percent"):
            DataConfig(hold_out=share)


def test_the_plan_counts_the_images_that_are_drawn(tiny_store: Any, tmp_path: Path) -> None:
    settings = ["run.steps=4", "run.batch_size=6", "student.sizes_px=[16]", f"data.hold_out={SHARE}"]
    plan = train_command(store=tiny_store.store.url, out=tmp_path / "run", recipe="demo", settings=settings, dry_run=True)
    (data,) = plan["data"].values()
    held = len(held_out_images(tiny_store.store.dataset("photos"), SHARE))
    assert data == {"share": 1.0, "images": 24 - held, "epochs": round(24 / (24 - held), 2), "held_out_images": held}


@pytest.mark.parametrize(("word", "says"), [
    ("1", "for 1 percent say 1% or 0.01"),
    ("5", "for 5 percent say 5% or 0.05"),
    ("100%", "none would be left to train on"),
    ("150", "would hold out every image"),
    ("-1%", "is not a share such as 1% or 0.01"),
    ("nan", "is not a share such as 1% or 0.01"),
    ("half", "is not a share such as 1% or 0.01"),
])  # fmt: skip
def test_a_share_that_is_none_is_said_with_what_was_meant(word: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"train --stage 2 --store {tmp_path} --data d --features f --out {tmp_path}/run --hold-out"
    assert main([*words.split(), word]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("word", "share"), [("1%", 0.01), ("0.01", 0.01), ("12.5%", 0.125), ("0", 0.0)])
def test_a_share_may_be_in_percent(word: str, share: float, tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"train --stage 2 --recipe demo --store {tiny_store.store.url} --data photos --features tiny-teacher --out {tmp_path}/run"
    more = ["--set", "student.sizes_px=[16]", "--set", "run.batch_size=4", "--dry-run", "--json"]
    status = main([*words.split(), "--hold-out", word, *more])
    out, err = capsys.readouterr()
    if word in ("1%", "0.01"):  # of 24 images, none
        assert status == 2
        assert "--hold-out 0.01 holds out none of 24 images" in err
        return
    assert status == 0
    assert json.loads(out.splitlines()[-1])["recipe"]["data.hold_out"]["value"] == share


def test_ranks_split_the_batches_of_the_kept_images(tiny_store: Any) -> None:
    parts = open_parts(tiny_store.store, ["tiny-teacher"], "photos", {})
    order = run_order(HELD, parts, tiny_store.store, None)
    for step in range(8):
        spans = [order.batch(step, BATCH, rank, 3).image_B.tolist() for rank in range(3)]
        assert [image for span in spans for image in span] == order.batch(step, BATCH).image_B.tolist()
        assert [len(span) for span in spans] == [len(range(*Ranks(rank, 3).span(BATCH))) for rank in range(3)]
