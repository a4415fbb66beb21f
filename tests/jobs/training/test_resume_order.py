"""A run is the same run in whatever order, by whatever path and on whatever device its command names the same things again.

Each trial goes on from a copy of one interrupted run, for its last step, and must end in the bytes of the run that nobody interrupted; or
it is refused, and the field in which it is another run is named. Runs as they were written before adapters had names are among them.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training import train as train_job
from eupe_pipeline.jobs.training.data import open_features, open_parts
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.targets import CachedTargets
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig, TeacherWeights, TrainRecipe
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import RunFolder, save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.runtime.devices import Choice

from ...conftest import TEACHER_PX, make_teacher, write_images
from ...fault_log import Trials
from ...student.training.test_kept_by_name import as_format_1
from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses

STEPS = 4
BASE = replace(
    RECIPE,
    precision="auto",
    student=replace(RECIPE.student, ema=0.9),
    teacher=TeacherConfig(weights={"b": TeacherWeights(0.5, 2.0)}, drop_probability=0.4, names=("a", "b", "w")),
    run=replace(RECIPE.run, steps=STEPS, checkpoint_every=2),
)
ANY = replace(BASE, teacher=TeacherConfig())
LIVE = replace(BASE, teacher=TeacherConfig("live", (16, 24)))
MIXED = replace(ANY, data=DataConfig({"few": 0.4, "photos": 0.6}))
NAMES = ("a", "b", "w")


def wide_teacher(run: Path) -> None:
    torch.manual_seed(3)
    student = Student(build_encoder({"name": "vit-mini", "width": 96, "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, run / "model", size_px=TEACHER_PX, targets={})


@dataclass(frozen=True)
class Several:
    """A store of two datasets, the folders of three teachers' runs (a and b of one width), and sampled sets of a and b."""

    root: Path
    store: FeatureStore

    def run(self, recipe: TrainRecipe, out: Path | str, features: Sequence[str] = NAMES, **more: Any) -> dict[str, Any]:
        data = "" if recipe.data.shares else "photos"
        return train(recipe, more.pop("store", self.store), features, data=data, out=out, **more)

    def teacher(self, name: str) -> str:
        return str(self.root / name)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Several:
    root = tmp_path_factory.mktemp("several")
    make_teacher(root / "a", 1)
    make_teacher(root / "b", 2)
    wide_teacher(root / "w")
    store = FeatureStore.create(str(root / "store"))
    borrowed: tuple[str, ...] = ()
    for data, count in (("photos", 12), ("few", 6)):
        write_images(root / data, count)
        build_index(store.objects, str(root / data), data)
        requests = tuple(TeacherRequest(str(root / name)) for name in NAMES)
        options = ExtractOptions(
            store.url, data, requests, ViewSpec(seed=3), 8, "int8", statistics_batches=1, workers=0, statistics_from=borrowed
        )
        borrowed = tuple(extract_features(options)["features"].values())
    for name in ("a", "b"):
        shutil.copytree(root / name, root / f"sampled-{name}")
        request = (TeacherRequest(str(root / f"sampled-{name}")),)
        extract_features(
            ExtractOptions(store.url, "photos", request, ViewSpec(seed=3), 8, tokens_per_view=2, statistics_batches=1, workers=0)
        )
    return Several(root, store)


class Cut:
    """One run, whole and interrupted before its last step; `goes_on` and `refuses` try a command on a copy of the second."""

    def __init__(self, home: Path, run: Callable[..., dict[str, Any]]) -> None:
        self.home, self._count = home, itertools.count()
        run(out=home / "whole")
        with pytest.raises(Interrupted):
            run(out=home / "cut", on_event=interrupt_after(STEPS - 1))

    def copy(self) -> Path:
        return Path(shutil.copytree(self.home / "cut", self.home / f"copy{next(self._count)}", symlinks=True))

    def goes_on(self, trials: Trials, run: Callable[..., dict[str, Any]], out: Path | None = None) -> None:
        out = out or self.copy()
        summary = run(out=out)
        assert summary["resumed_from"] == STEPS - 1
        assert losses(out) == losses(self.home / "whole")
        for kind in ("model", "average/model"):
            for file in ("backbone.safetensors", "adapters.safetensors"):
                assert (out / kind / file).read_bytes() == (self.home / "whole" / kind / file).read_bytes(), f"{kind}/{file}"
        trials.note("right")

    def refuses(self, trials: Trials, field: str, run: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(BadInput, match=field):
            run(out=self.copy())
        trials.note("detected")


def orders(names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(itertools.permutations(names))


@pytest.mark.fault
def test_features_in_any_order_are_the_same_run(several: Several, tmp_path: Path) -> None:
    """Three teachers, two of one width, with loss weights by name and teachers left out at random."""
    cut = Cut(tmp_path, lambda out, **more: several.run(BASE, out, ("w", "a", "b"), **more))
    with Trials(32) as trials:
        for features in orders(NAMES):
            recipe = replace(BASE, teacher=replace(BASE.teacher, names=features[::-1]))
            cut.goes_on(trials, lambda out, recipe=recipe, features=features: several.run(recipe, out, features))
        for features in orders(NAMES)[:3]:  # the run is finished
            assert several.run(BASE, tmp_path / "whole", features)["already"]
            trials.note("right")


@pytest.mark.fault
@pytest.mark.parametrize("steps_logged", [True, False])
def test_a_run_whose_adapters_were_numbered_goes_on_in_any_order(
    several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_logged: bool
) -> None:
    """Such a run kept the order of its command and never wrote it down: the metrics have it, and before the first of them the start."""
    begun = ["b", "w", "a"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "teacher_order", lambda folder, names: begun)
        cut = Cut(tmp_path, lambda out, **more: several.run(BASE, out, begun, **more))
    specs = CachedTargets(open_features(several.store, begun, "photos")).specs
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        as_format_1(checkpoint, initial_student(BASE, {name: specs[name] for name in begun}))
    if not steps_logged:
        (tmp_path / "cut" / "metrics.jsonl").unlink()
        lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "whole" / "metrics.jsonl").write_text(lines[-1])
    with Trials(32) as trials:
        for features in orders(NAMES)[:: 1 if steps_logged else 3]:
            cut.goes_on(trials, lambda out, features=features: several.run(BASE, out, features))


@pytest.mark.fault
def test_sampled_and_whole_grids_go_on_in_any_order(several: Several, tmp_path: Path) -> None:
    names, recipe = ("sampled-b", "w", "sampled-a"), replace(ANY, student=replace(ANY.student, sizes_px=(16,)))
    cut = Cut(tmp_path, lambda out, **more: several.run(recipe, out, names, **more))
    with Trials(32) as trials:
        for features in orders(names)[1::2]:
            cut.goes_on(trials, lambda out, features=features: several.run(recipe, out, features))
        cut.refuses(trials, r"targets\.a: got", lambda out: several.run(recipe, out, ("a", "w", "sampled-b")))


@pytest.mark.fault
def test_live_teachers_find_their_feature_sets_in_any_order(several: Several, tmp_path: Path) -> None:
    def run(out: Path, features: Sequence[str] = ("a", "b"), teachers: Sequence[str] = ("a", "b"), **more: Any) -> dict[str, Any]:
        return several.run(LIVE, out, features, teachers=[several.teacher(name) for name in teachers], **more)

    cut = Cut(tmp_path, run)
    with Trials(32) as trials:
        for features, teachers in itertools.product([("a", "b"), ("b", "a")], repeat=2):
            cut.goes_on(trials, lambda out, features=features, teachers=teachers: run(out, features, teachers))
        cut.refuses(trials, "w is not the teacher that made [ab]@.*weights_sha256", lambda out: run(out, teachers=("a", "w")))
        cut.refuses(trials, "2 sets .*, 1 teachers", lambda out: run(out, teachers=("a",)))
        cut.refuses(trials, r"targets\.b", lambda out: run(out, ("a",), ("a",)))


@pytest.mark.fault
def test_datasets_of_a_mixture_go_on_in_any_order(several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = MIXED.data.shares
    turned = replace(MIXED, data=DataConfig(dict(reversed(list(shares.items())))))
    (tmp_path / "new").mkdir()
    cut = Cut(tmp_path / "new", lambda out, **more: several.run(MIXED, out, ("a", "b"), **more))
    with monkeypatch.context() as patch:  # before, the first --data came first
        patch.setattr(train_job, "open_parts", lambda *given, **more: open_parts(*given, **more)[::-1])
        (tmp_path / "old").mkdir()
        old = Cut(tmp_path / "old", lambda out, **more: several.run(turned, out, ("a", "b"), **more))
    assert losses(tmp_path / "old" / "whole") != losses(tmp_path / "new" / "whole")
    with Trials(32) as trials:
        for run, recipe, features in itertools.product((cut, old), (MIXED, turned), [("a", "b"), ("b", "a")]):
            run.goes_on(trials, lambda out, recipe=recipe, features=features: several.run(recipe, out, features))
        other = replace(MIXED, data=DataConfig({"few": 0.6, "photos": 0.4}))
        cut.refuses(trials, r"data\.shares\.few: got 0.6, wanted 0.4", lambda out: several.run(other, out, ("a", "b")))


@pytest.mark.fault
def test_folders_by_any_path_are_the_same_run(several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    (tmp_path / "work" / "store").symlink_to(several.store.url)
    several.run(BASE, "first")

    def recipe(start: str) -> TrainRecipe:
        return replace(BASE, student=replace(BASE.student, init_from=start))

    cut = Cut(tmp_path / "work", lambda out, **more: several.run(recipe("first"), out, **more))
    ways: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: str(tmp_path / "work" / name),
        lambda name: str(tmp_path / "link" / name),
        lambda name: f"../link/./{name}",
        lambda name: f"~/{name}",
    ]
    with Trials(32) as trials:
        for number, way in enumerate(ways):
            out, other = cut.copy().name, ways[number - 1]
            again = several.run(recipe(other("first")), way(out), store=FeatureStore.open(way("store")))
            assert again["resumed_from"] == STEPS - 1
            cut.goes_on(trials, lambda out, again=again: again, tmp_path / "work" / out)
        several.run(replace(BASE, seed=5), "second")
        cut.refuses(trials, r"init_from\.backbone", lambda out: several.run(recipe("second"), out))
        cut.refuses(trials, "init_from: got None", lambda out: several.run(BASE, out))


@pytest.mark.fault
def test_what_auto_was_stays_and_another_precision_is_refused(
    several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Any
) -> None:
    seen, on_event = events
    cut = Cut(tmp_path, lambda out, **more: several.run(BASE, out, **more))
    with Trials(32) as trials:
        began = RunFolder(tmp_path / "cut").choices()["precision"].value
        elsewhere = Choice("fp32" if began == "bf16" else "bf16", "auto: another machine")
        monkeypatch.setattr(train_job, "choose_precision", lambda asked, device: elsewhere)
        cut.goes_on(trials, lambda out: several.run(BASE, out, on_event=on_event))
        assert any(f"precision stays {began}" in str(event.get("text")) for event in seen)
        kept = RunFolder(tmp_path / "copy0").finished()
        assert kept is not None
        assert kept["precision"]["value"] == began
        cut.refuses(trials, r"precision: got 'bf16', wanted 'auto'", lambda out: several.run(replace(BASE, precision="bf16"), out))
        cut.refuses(trials, r"device: got 'auto', wanted 'cpu'", lambda out: several.run(replace(BASE, device="auto"), out))


@pytest.mark.fault
@pytest.mark.parametrize("way", ["fewer", "more", "other", "values"])
def test_another_run_is_refused_and_the_field_named(several: Several, tmp_path: Path, way: str) -> None:
    cut = Cut(tmp_path, lambda out, **more: several.run(ANY, out, ("b", "a"), **more))
    with Trials(32) as trials:
        if way == "fewer":
            cut.refuses(trials, r"targets\.b: got nothing", lambda out: several.run(ANY, out, ("a",)))
            cut.refuses(trials, r"targets\.a: got nothing", lambda out: several.run(ANY, out, ("b",)))
        elif way == "more":
            cut.refuses(trials, r"learns from something else: targets\.w: got", lambda out: several.run(ANY, out, ("w", "a", "b")))
            cut.refuses(trials, "two feature sets of teacher a", lambda out: several.run(ANY, out, ("a", "b", "a")))
        elif way == "other":
            cut.refuses(trials, r"targets\.b: got nothing.*targets\.w", lambda out: several.run(ANY, out, ("w", "a")))
            coarse = replace(ANY, student=replace(ANY.student, sizes_px=(16,)))
            cut.refuses(trials, r"sizes_px: got \[16\]", lambda out: several.run(coarse, out, ("sampled-a", "b")))
            live = replace(ANY, teacher=TeacherConfig("live"))
            teachers = [several.teacher("a"), several.teacher("b")]
            cut.refuses(trials, r"teacher\.source", lambda out: several.run(live, out, ("a", "b"), teachers=teachers))
        else:
            changed = {
                r"student\.sizes_px": replace(ANY, student=replace(ANY.student, sizes_px=(16, 24))),
                r"teacher\.weights": replace(ANY, teacher=TeacherConfig(weights={"a": TeacherWeights(2.0)})),
                r"adapter\.width": replace(ANY, adapter=replace(ANY.adapter, width=16)),
                r"optimizer\.name": replace(ANY, optimizer=replace(ANY.optimizer, name="lamb")),
                r"run\.batch_size": replace(ANY, run=replace(ANY.run, batch_size=3)),
                r"data\.order": replace(ANY, data=DataConfig(order="shards")),
                r"seed: got 1": replace(ANY, seed=1),
            }
            for field, recipe in changed.items():
                cut.refuses(trials, field, lambda out, recipe=recipe: several.run(recipe, out, ("a", "b")))


def test_a_student_started_from_another_run_has_each_teachers_own_adapters(several: Several, tmp_path: Path) -> None:
    """Stage 3 from stage 2's checkpoint, the teachers named in another order: the first loss is that of the trained adapters."""
    several.run(ANY, tmp_path / "first", ("a", "b"))
    start = replace(ANY, student=replace(ANY.student, init_from=str(tmp_path / "first")))
    curves = []
    for features in (("a", "b"), ("b", "a")):
        several.run(start, tmp_path / "-".join(features), features)
        curves.append(losses(tmp_path / "-".join(features)))
    assert curves[0] == curves[1]
    with pytest.raises(CacheMismatch, match=r"adapters\.teachers\.w"):
        several.run(start, tmp_path / "other", ("a", "w"))
    assert not os.path.exists(tmp_path / "other" / "checkpoints")
