"""`train`'s surface: live targets in stages 1 and 2, several students, a dry run that says what is needed."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.training.run_folder import read_metrics

from ...jobs.training_request import train_command

SETTINGS = (
    "views.photometric=none",
    "device=cpu", "precision=fp32", "student.architecture=vit-mini", "student.sizes_px=[24]", "adapter.width=32", "run.steps=4",
    "run.batch_size=6", "run.log_every=1", "optimizer.learning_rate=1e-2",
)  # fmt: skip


def go(tiny: Any, out: Path, **more: Any) -> Any:
    return train_command(store=tiny.store.url, out=out, **{"settings": SETTINGS, **more})


def test_live_targets_in_stage_2_are_the_same_training(tiny_store: Any, tmp_path: Path) -> None:
    go(tiny_store, tmp_path / "cached")
    go(tiny_store, tmp_path / "live", targets="live", teachers=[str(tiny_store.teacher_run)])
    cached, live = ([line["loss"] for line in read_metrics(tmp_path / name)] for name in ("cached", "live"))
    assert live == pytest.approx(cached, abs=1e-4)


def test_live_teachers_of_several_feature_sets_are_given_in_order(tiny_store: Any, tmp_path: Path) -> None:
    more = {"stage": 1, "features": ["tiny-teacher", "tiny-int8"], "targets": "live", "settings": (*SETTINGS, "optimizer.name=adamw")}
    summary = go(tiny_store, tmp_path / "run", teachers=[str(tiny_store.teacher_run)] * 2, **more)
    assert set(summary["losses"]) == {"tiny-teacher", "tiny-int8"}
    with pytest.raises(BadInput, match="2 --features need 2 --teacher"):
        go(tiny_store, tmp_path / "run", teachers=[str(tiny_store.teacher_run)], **more)


@pytest.mark.parametrize(("more", "says"), [
    ({"targets": "live"}, "give --proxy RUN"),
    ({"teachers": ["x"]}, "need no live teacher"),
    ({"targets": "live", "teachers": ["x"], "proxy": Path("y")}, "give --teacher alone"),
    ({"address": "auto"}, "give --workers as well"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(tiny_store: Any, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        go(tiny_store, tmp_path / "run", **more)


def test_one_student_is_a_recipe_value_and_several_have_a_run_each(tiny_store: Any, tmp_path: Path) -> None:
    settings = (*SETTINGS, "student.sizes_px=[32]")
    go(tiny_store, tmp_path / "one", students=["convnext-mini"], settings=settings)
    assert '"student.architecture": "--set"' in (tmp_path / "one" / "recipe.json").read_text()
    both = go(tiny_store, tmp_path / "both", students=["convnext-mini", "vit-mini"], settings=settings)
    assert set(both["students"]) == {"convnext-mini", "vit-mini"} == {path.name for path in (tmp_path / "both").iterdir()}


def test_a_student_is_measured_on_the_way_when_asked(tiny_store: Any, tmp_path: Path) -> None:
    go(tiny_store, tmp_path / "run", watch=Watch("knn", 2, "photos", 24, allow_overlap=True))
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "knn" in line] == [2, 4]
    arguments = ["train", "--stage", "2", "--store", tiny_store.store.url, "--data", "photos", "--features", "tiny-teacher", "--out", "x"]
    assert main([*arguments, "--recipe", "1-2", "--evaluate", "knn"]) == 2


class TestDryRun:
    def test_it_says_what_is_needed_and_writes_nothing(self, tiny_store: Any, tmp_path: Path) -> None:
        plan = go(tiny_store, tmp_path / "run", dry_run=True)
        assert not (tmp_path / "run").exists()
        assert plan["students"]["vit-mini"]["parameters"] > plan["students"]["vit-mini"]["backbone_parameters"] > 0
        assert plan["reading"]["bytes_a_run"] == pytest.approx(4 * plan["reading"]["bytes_a_step"], abs=4)
        assert plan["recipe"]["run.steps"] == {"value": 4, "origin": "--set"}

    def test_its_parameters_are_the_runs(self, tiny_store: Any, tmp_path: Path) -> None:
        plan, summary = go(tiny_store, tmp_path / "run", dry_run=True), go(tiny_store, tmp_path / "run")
        assert plan["students"]["vit-mini"]["parameters"] == summary["parameters"]
        assert plan["batch"]["prefetch"] == summary["prefetch"]

    def test_live_teachers_pixels_count_and_the_tokens_they_replace_do_not(self, tiny_store: Any, tmp_path: Path) -> None:
        live = {"targets": "live", "teachers": [str(tiny_store.teacher_run)]}
        plan, summary = go(tiny_store, tmp_path / "run", dry_run=True, **live), go(tiny_store, tmp_path / "run", **live)
        assert plan["batch"]["prefetch"] == summary["prefetch"]
        assert summary["prefetch"]["batch_bytes"] == 6 * (3 * 24**2 + 3 * 16**2 + 32)

    def test_shares_parts_and_recomputing_lower_the_memory(self, tiny_store: Any, tmp_path: Path) -> None:
        def cost(workers: int, *settings: str) -> dict[str, int]:
            plan = go(tiny_store, tmp_path / "run", dry_run=True, workers=workers, settings=(*SETTINGS, *settings))
            return dict(plan["students"]["vit-mini"])

        alone = cost(0)
        assert cost(2, "run.parallel=fsdp")["state_bytes"] == alone["state_bytes"] // 2
        assert cost(2)["activation_bytes"] == alone["activation_bytes"] // 2
        assert cost(0, "run.accumulate=3")["activation_bytes"] == alone["activation_bytes"] // 3
        assert cost(0, "run.recompute_activations=true")["activation_bytes"] < alone["activation_bytes"]
        assert cost(0, "student.ema=0.9")["state_bytes"] > alone["state_bytes"]
