"""Trainings with the losses by name over a tiny real store: cached is live, stopped runs and runs of before go on, misuse is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.reports.replay import replay_step
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.student.data.class_spaces import class_spaces
from eupe_pipeline.student.data.targets import LiveTargets
from eupe_pipeline.student.model.losses import angular_dispersion
from eupe_pipeline.student.model.recipe import LossConfig, TeacherConfig
from eupe_pipeline.student.model.sharding import clip_gradient_norm
from eupe_pipeline.student.training.learner import TrainingDiverged
from eupe_pipeline.student.training.run_folder import read_metrics

from ..training_request import train, train_command
from .test_train import RECIPE, interrupt_after, losses, run
from .test_train_sampled import SHORT, kept  # noqa: F401  # a fixture

ALL = LossConfig(cls="angle", relation=0.5, shift=1.0)
EVERY = replace(RECIPE, loss=ALL, student=replace(RECIPE.student, sizes_px=(32,)))  # a student's grid of 4×4, the teacher's is 2×2


def test_cached_targets_train_bit_equal_to_the_live_teacher_with_all_of_them(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneByOne(LiveTargets):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, forward_batch=1, **kwargs)

    monkeypatch.setattr("eupe_pipeline.jobs.training.train.LiveTargets", OneByOne)
    run(tiny_store, EVERY, tmp_path / "cached")
    run(tiny_store, replace(EVERY, teacher=TeacherConfig("live")), tmp_path / "live", proxy=tiny_store.teacher_run)
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")
    terms = [line["losses"]["tiny-teacher"] for line in read_metrics(tmp_path / "cached")]
    assert {name for line in terms for name in line} == {"cls", "patch", "relation"}
    for line, total in zip(terms, losses(tmp_path / "cached"), strict=True):
        assert total == pytest.approx(line["cls"] + line["patch"] + 0.5 * line["relation"], rel=1e-5)


def test_a_run_with_all_of_them_that_is_stopped_goes_on_bit_equal_in_parts_as_well(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, EVERY, tmp_path / "whole", features=("tiny-teacher", "tiny-int8"))
    with pytest.raises(Interrupted, match="stopped after step 4"):
        run(tiny_store, EVERY, tmp_path / "stopped", features=("tiny-teacher", "tiny-int8"), on_event=interrupt_after(4))
    run(tiny_store, EVERY, tmp_path / "stopped", features=("tiny-int8", "tiny-teacher"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    parted = replace(EVERY, run=replace(EVERY.run, accumulate=3))
    run(tiny_store, parted, tmp_path / "parted", features=("tiny-teacher", "tiny-int8"))
    assert losses(tmp_path / "parted") == pytest.approx(losses(tmp_path / "whole"), rel=2e-3)  # the angle's dispersion is not the batch's


@pytest.mark.parametrize("loss", [LossConfig(relation=1.0), LossConfig(cls="angle"), LossConfig(shift=1.0)])
def test_each_of_them_is_another_run_and_is_learnt(tiny_store: Any, tmp_path: Path, loss: LossConfig) -> None:
    longer = replace(EVERY.run, steps=40, checkpoint_every=40)
    recipe = replace(EVERY, loss=loss, run=longer)
    run(tiny_store, recipe, tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert sum(curve[-8:]) < 0.9 * sum(curve[:8])
    with pytest.raises(CacheMismatch, match=r"loss\.(relation|cls|shift)"):
        run(tiny_store, replace(recipe, loss=LossConfig()), tmp_path / "run")


def test_live_teachers_and_students_of_several_sizes_take_them(tiny_store: Any, tmp_path: Path) -> None:
    student = replace(EVERY.student, sizes_px=(32, 64))
    recipe = replace(EVERY, stage=3, student=student, teacher=TeacherConfig("live", (16, 32)))  # grids of 4 and 8 against 2 and 4
    run(tiny_store, recipe, tmp_path / "run", proxy=tiny_store.teacher_run)
    sizes = {(line["sizes_px"]["student"], line["sizes_px"]["tiny-teacher"]) for line in read_metrics(tmp_path / "run")}
    assert len(sizes) > 2
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    with pytest.raises(BadInput, match="tiny-teacher 5×5/3×3"):  # whose tokens would be finer, and not whole in the student's
        run(tiny_store, replace(recipe, teacher=TeacherConfig("live", (40, 24))), tmp_path / "other", proxy=tiny_store.teacher_run)


def test_the_angle_undoes_phi_s(photos: Any) -> None:
    _, options, _ = photos
    key = extract_features(replace(options, normalisation="phi-s"))["features"]["teacher"]
    reader = photos[0].features(key)
    assert reader.statistics.cls_matrix is not None
    normalised = reader.read_cls(np.arange(reader.rows)).astype(np.float32)
    (space,) = class_spaces([(1.0, {"t": reader})]).values()
    own = torch.from_numpy(normalised) @ space.scale.T + space.mean_D
    torch.testing.assert_close(own, torch.from_numpy(reader.statistics.denormalize_cls(normalised)), rtol=1e-4, atol=1e-4)
    assert space.dispersion == pytest.approx(angular_dispersion(own, torch.ones(len(own))), rel=1e-4)


def test_bf16_students_take_them(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, replace(EVERY, precision="bf16", run=replace(EVERY.run, steps=3)), tmp_path / "run")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def test_a_run_of_before_they_existed_goes_on(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_store, RECIPE, tmp_path / "run", on_event=interrupt_after(3))
    path = tmp_path / "run" / "recipe.json"
    recorded = json.loads(path.read_text())
    for name in ("cls", "relation", "shift"):
        del recorded["recipe"]["loss"][name]
    del recorded["terms"]
    path.write_text(json.dumps(recorded))
    run(tiny_store, RECIPE, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_sampled_tokens_have_relations_and_angles_and_all_of_them_give_the_dense_loss(kept: Any, tmp_path: Path) -> None:  # noqa: F811
    store, keys = kept
    recipe = replace(SHORT, loss=LossConfig(cls="angle", relation=0.5))
    for name in ("dense", "every", "some"):
        train(recipe, store, [keys[name]], data="photos", out=tmp_path / name)
    assert losses(tmp_path / "every") == pytest.approx(losses(tmp_path / "dense"), rel=1e-6)
    assert len(losses(tmp_path / "some")) == SHORT.run.steps


@pytest.mark.parametrize(("loss", "name", "more", "says"), [
    (LossConfig(shift=1.0), "some", {}, "holds 6 of each"),
    (LossConfig(shift=1.0), "dense", {"sizes_px": (24,)}, "no such shift for vit-mini at 24 px"),
    (LossConfig(cls="angle"), "dense", {"follow_s": 1.0}, "--follow trains while they are made"),
])  # fmt: skip
def test_what_they_cannot_be_computed_of_is_refused_before_a_folder_is_made(
    kept: Any, tmp_path: Path, loss: LossConfig, name: str, more: dict[str, Any], says: str  # noqa: F811
) -> None:  # fmt: skip
    store, keys = kept
    student = replace(SHORT.student, sizes_px=more.pop("sizes_px", SHORT.student.sizes_px))
    recipe = replace(SHORT, loss=loss, student=student)
    options = TrainOptions(recipe, store.url, (keys[name],), tmp_path / "run", "photos", **more)
    with pytest.raises(BadInput, match=says):
        plan_training(options)
    with pytest.raises(BadInput, match=says):
        train(recipe, store, [keys[name]], data="photos", out=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_set_takes_them_and_the_plan_names_their_works(tiny_store: Any, tmp_path: Path) -> None:
    settings = [
        "views.photometric=none", "device=cpu", "student.architecture=vit-mini", "student.sizes_px=[32]", "adapter.width=32", "run.steps=2",
        "run.batch_size=6", "loss.cls=angle", "loss.relation=0.5", "loss.shift=0.5",
    ]  # fmt: skip
    planned = train_command(store=tiny_store.store.url, out=tmp_path / "run", settings=settings, dry_run=True)
    assert list(planned["losses"]) == ["relation", "angle", "shift"]
    assert "arXiv 2601.17237" in planned["losses"]["angle"]
    assert set(train_command(store=tiny_store.store.url, out=tmp_path / "run", settings=settings)["losses"]["tiny-teacher"]) == {
        "cls", "patch", "relation",
    }  # fmt: skip
    plain = train_command(store=tiny_store.store.url, out=tmp_path / "other", settings=settings[:-3], dry_run=True)
    assert "losses" not in plain


def test_the_spread_is_measured_in_the_teachers_own_space_and_a_mixture_counts_by_share(tiny_store: Any) -> None:
    reader, other = tiny_store.features(), tiny_store.features("tiny-gaps")
    own = [torch.from_numpy(one.statistics.denormalize_cls(one.read_cls(np.setdiff1d(np.arange(one.rows), one.failed_rows())).astype("f4")))
           for one in (reader, other)]  # fmt: skip
    (space,) = class_spaces([(1.0, {"t": reader})]).values()
    assert space.dispersion == pytest.approx(angular_dispersion(own[0], torch.ones(len(own[0]))), rel=1e-9)
    assert space.dispersion < 2.0, "not the right angle of normalised tokens"
    weights = torch.cat([torch.full((len(tokens),), share / len(tokens)) for share, tokens in zip((0.25, 0.75), own, strict=True)])
    (mixed,) = class_spaces([(0.25, {"t": reader}), (0.75, {"t": other})]).values()
    assert mixed.dispersion == pytest.approx(angular_dispersion(torch.cat(own), weights), rel=1e-6)


def test_a_step_that_was_not_finite_is_computed_again_with_all_of_them(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eupe_pipeline.student.training.learner.clip_gradient_norm",
        lambda parameters, most: clip_gradient_norm(parameters, most) * math.inf,
    )
    with pytest.raises(TrainingDiverged):
        run(tiny_store, EVERY, tmp_path / "run")
    monkeypatch.undo()
    (folder,) = (tmp_path / "run" / "nonfinite").iterdir()
    assert (folder / "spaces.safetensors").is_file()
    found = replay_step(folder=folder)
    assert found["equal"]
    assert set(found["losses"]["tiny-teacher"]) == {"cls", "patch", "relation"}
