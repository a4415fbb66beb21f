"""A run names the version of its dataset, goes on with it after the photos grew, and can be repeated on it; new runs take the newest."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.curate import curate_features
from eupe_pipeline.jobs.curation.options import CurateOptions
from eupe_pipeline.jobs.estimates.extraction import PlanOptions, plan_extraction
from eupe_pipeline.jobs.evaluation.split_checks import distilled_on
from eupe_pipeline.jobs.training import launch
from eupe_pipeline.jobs.training.data import open_parts, run_order
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.jobs.training.versions import recorded_versions
from eupe_pipeline.pipeline.reports.catalog import copy_feature_set, list_store, prune_features, show_features, verify_features
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.hold_out import held_out_images
from eupe_pipeline.storage.images.subsets import ImageSubset
from eupe_pipeline.student.model.recipe import DataConfig

from ..growing import Growing
from ..training_request import train, train_command
from .test_train import RECIPE, losses


def run(growing: Growing, out: str, data: str = "photos", features: str = "teacher", **values: Any) -> dict[str, Any]:
    return train(RECIPE, growing.store, [features], data=data, out=growing.root / out, **values)


def recorded(growing: Growing, out: str, name: str = "recipe.json") -> dict[str, Any]:
    return dict(json.loads((growing.root / out / name).read_text()))


def stopped_after(checks: int) -> Any:
    """A stop that comes after so many steps."""
    asked = iter([False] * checks)
    return lambda: next(asked, True)


@pytest.fixture
def grown(growing: Growing) -> tuple[Growing, str, str]:
    """Both versions extracted, a finished run `whole` and an interrupted one `halted` on the first; keys of the two datasets."""
    first = growing.store.dataset("photos").key
    growing.extract(codec="fp32")
    run(growing, "whole")
    with pytest.raises(Interrupted):
        run(growing, "halted", stop_asked=stopped_after(4))
    second = growing.grow()
    growing.extract(codec="fp32")
    return growing, first, second


def test_runs_name_their_version_resume_on_it_and_repeat_on_it(grown: tuple[Growing, str, str], events: Any) -> None:
    growing, first, second = grown
    seen, on_event = events
    versions = {key: growing.store.dataset(key) for key in (first, second)}
    targets = recorded(growing, "halted", "identities.json")["targets"]
    assert recorded(growing, "halted")["datasets"] == {first: {"digest": versions[first].digest, "images": 40, "version": 1}}
    run(growing, "halted", on_event=on_event)  # the same command as before the photos grew
    assert losses(growing.root / "halted") == losses(growing.root / "whole")
    assert recorded(growing, "halted", "identities.json")["targets"] == targets
    assert f"photos is {first}, as this run was begun; {second} is newer" in str(seen)
    assert run(growing, "whole")["already"] is True
    run(growing, "new")
    assert recorded(growing, "new")["datasets"] == {second: {"digest": versions[second].digest, "images": 44, "version": 2}}
    run(growing, "repeated", data=first)
    assert losses(growing.root / "repeated") == losses(growing.root / "whole")
    with pytest.raises(CacheMismatch, match="that learns from something else"):
        run(growing, "repeated", data=second)


def test_a_run_of_before_this_record_goes_on_with_its_version_too(grown: tuple[Growing, str, str]) -> None:
    growing, first, _ = grown
    record = recorded(growing, "halted")
    record.pop("datasets")
    (growing.root / "halted" / "recipe.json").write_text(json.dumps(record))
    plan = train_command(store=growing.store.url, out=growing.root / "halted", features=["teacher"], dry_run=True, settings=SETTINGS)
    assert list(plan["data"]) == [first]
    run(growing, "halted")
    assert losses(growing.root / "halted") == losses(growing.root / "whole")


SETTINGS: Sequence[str] = ["run.steps=2", "run.batch_size=4", "student.sizes_px=[16]", "views={}"]


def test_names_in_a_mixture_keep_their_version_as_well(grown: tuple[Growing, str, str]) -> None:
    growing, first, _ = grown
    mixture = replace(RECIPE, data=DataConfig(shares={"photos": 0.5, "others": 0.5}))
    options = TrainOptions(mixture, growing.store.url, ("teacher",), growing.root / "halted")
    assert recorded_versions(options, growing.store, growing.root / "halted") == {"photos": first}
    assert recorded_versions(options, growing.store, growing.root / "nothing here") == {}


def test_a_version_that_is_not_extracted_yet_is_refused_with_the_command(growing: Growing) -> None:
    growing.extract()
    growing.grow()
    with pytest.raises(CacheMismatch, match="extract for that dataset first"):
        run(growing, "run")


def test_on_miss_compute_after_a_growth_computes_the_new_photos_alone(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    growing.forwards = 0
    teacher = str(growing.everything / "teacher")
    options = TrainOptions(RECIPE, growing.store.url, ("teacher",), growing.root / "run", "photos", on_miss="compute", teachers=(teacher,))
    launch.train(options)
    new = growing.store.features("teacher")
    assert growing.forwards == 8
    assert (new.views.dataset.version, new.views.spec) == (2, old.views.spec)


def test_a_subset_of_an_older_version_is_refused_and_one_of_each_has_the_name(grown: tuple[Growing, str, str]) -> None:
    growing, first, second = grown
    few = ImageSubset.create(growing.store.objects, "few", growing.store.dataset(first), np.arange(40) < 20, {})
    with pytest.raises(CacheMismatch, match=f"{few.key} .* older version of photos.*--data NAME@DIGEST"):
        open_parts(growing.store, ["teacher"], "photos", {}, subsets=["few"])
    assert open_parts(growing.store, ["teacher"], first, {}, subsets=["few"])[0].images == 20
    made = curate_features(CurateOptions("teacher", growing.store.url, "few", balance=30))
    assert made["dataset"] == second
    assert open_parts(growing.store, ["teacher"], "photos", {}, subsets=["few"])[0].images == 30
    assert growing.store.subset("few").key == made["subset"]


@pytest.mark.parametrize("data", [{"order": "global"}, {"order": "shards"}, {"order": "global", "replace_failed": True}])
def test_removed_photos_are_never_drawn(growing: Growing, data: dict[str, Any]) -> None:
    growing.extract()
    names = growing.store.dataset("photos").ids(0, 40)
    for number in (3, 17, 38):
        (growing.images / names[number]).unlink()
    growing.index(allow_removed=True)
    growing.extract()
    assert growing.forwards == 0
    parts = open_parts(growing.store, ["teacher"], "photos", {})
    order = run_order(replace(RECIPE, data=DataConfig(**data)), parts, growing.store, None)
    drawn = [int(image) for step in range(37) for image in order.batch(step, 3).image_B]
    assert (order.epoch_length, parts[0].images) == (37, 37)
    assert sorted(drawn) == sorted(3 * [number for number in range(40) if number not in (3, 17, 38)])
    if data["order"] == "global" and len(data) == 1:
        run(growing, "run")


def test_a_hold_out_counts_no_removed_photo_as_drawn(growing: Growing) -> None:
    growing.extract()
    names, share = growing.store.dataset("photos").ids(0, 40), 0.1
    held = held_out_images(growing.store.dataset("photos"), share).tolist()
    for number in range(30):
        (growing.images / names[number]).unlink()
    growing.index(allow_removed=True)
    growing.extract()
    kept = [number for number in range(30, 40) if number not in held]
    assert 0 < len(kept) < 10
    plan = train_command(
        store=growing.store.url,
        out=growing.root / "run",
        features=["teacher"],
        dry_run=True,
        settings=[*SETTINGS, "views.photometric=none", f"data.hold_out={share}"],
    )
    (data,) = plan["data"].values()
    assert (data["images"], data["held_out_images"]) == (len(kept), 10 - len(kept))
    recipe = replace(RECIPE, data=DataConfig(hold_out=share), run=replace(RECIPE.run, steps=1))
    train(recipe, growing.store, ["teacher"], data="photos", out=growing.root / "run")
    (drawn,) = distilled_on(growing.store, growing.root / "run").values()
    assert drawn is not None
    assert drawn.tolist() == kept


def test_ls_and_show_tell_the_versions_and_prune_what_stays(grown: tuple[Growing, str, str]) -> None:
    growing, first, second = grown
    old, new = (growing.store.features(key) for key in _feature_keys(growing, first, second))
    listed = list_store(store=growing.store.url)
    assert listed["datasets"][first] == {"images": 40, "labels": 3, "version": 1, "continued_by": [second]}
    assert listed["datasets"][second] == {
        "images": 44, "labels": 3, "version": 2, "extends": [first], "new_images": 4, "removed_images": 0,
    }  # fmt: skip
    assert (listed["features"][new.key]["dataset"], listed["features"][new.key]["version"]) == (second, 2)
    assert show_features(key="teacher", store=growing.store.url)["versions"]["extends"] == [first]
    assert verify_features(store=growing.store.url)["findings"] == []
    with pytest.raises(BadInput, match="'teacher' is the name of several things"):  # a name never deletes one of two
        prune_features(key="teacher", store=growing.store.url, dry_run=True)
    pruned = prune_features(key=old.key, store=growing.store.url, dry_run=False)
    assert pruned["shared_objects"] == 2 * 2  # two arrays of two shards
    assert verify_features(store=growing.store.url)["findings"] == []
    assert "shared_objects" not in prune_features(key=new.key, store=growing.store.url, dry_run=True)
    target = str(growing.root / "target")
    copied = copy_feature_set(key=new.key, store=growing.store.url, target=target)
    assert copied["complete"]
    shutil.rmtree(growing.store.url)
    assert verify_features(store=target)["findings"] == []
    assert list_store(store=target)["datasets"][second]["extends"] == [first]


def _feature_keys(growing: Growing, first: str, second: str) -> list[str]:
    of = {growing.store.features(key).views.dataset.key: key for key in growing.store.list_features()}
    return [of[first], of[second]]


def test_a_plan_counts_only_what_is_new(growing: Growing) -> None:
    before = plan_extraction(PlanOptions(growing.options, "vit-mini", student_size_px=16, student_images_per_s=100.0, batches=1))
    growing.extract()
    done = plan_extraction(PlanOptions(growing.options, "vit-mini", student_size_px=16, student_images_per_s=100.0, batches=1))
    growing.grow()
    plan = plan_extraction(PlanOptions(growing.options, "vit-mini", student_size_px=16, student_images_per_s=100.0, batches=1))
    view_bytes = plan["teachers"]["teacher"]["bytes_of_a_view"]
    assert before["for photos"]["cost"]["teacher"]["bytes"] == 80 * view_bytes
    assert plan["for photos"]["cost"]["teacher"]["bytes"] == 8 * view_bytes
    assert "rows_in_store" not in before["for photos"]
    assert done["for photos"]["cost"]["teacher"]["bytes"] == 0
    assert done["for photos"]["rows_in_store"] == plan["for photos"]["rows_in_store"] == {"teacher": 80}


def test_a_run_at_a_url_is_found_by_its_record(growing: Growing) -> None:
    import fsspec

    first = growing.store.dataset("photos").key
    growing.grow()
    record = json.dumps({"datasets": {first: {}}}).encode()
    with fsspec.open("memory://runs/one/recipe.json", "wb") as file:
        file.write(record)
    options = TrainOptions(RECIPE, growing.store.url, ("teacher",), "memory://runs/one", "photos")
    assert recorded_versions(options, growing.store, options.out) == {"photos": first}
