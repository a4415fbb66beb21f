"""From words to one request: what a command hands to its job, field by field, and that no option is lost on the way."""

import inspect
import json
import pickle
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from eupe_pipeline.jobs import export_run
from eupe_pipeline.jobs.evaluation import correspondence, depth, knn, linear, segmentation, zero_shot
from eupe_pipeline.jobs.evaluation.correspondence import CorrespondenceOptions
from eupe_pipeline.jobs.evaluation.depth import DepthOptions
from eupe_pipeline.jobs.evaluation.knn import KnnOptions
from eupe_pipeline.jobs.evaluation.linear import LinearOptions
from eupe_pipeline.jobs.evaluation.segmentation import SegmentationOptions
from eupe_pipeline.jobs.evaluation.zero_shot import ZeroShotOptions
from eupe_pipeline.jobs.extraction import extract
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair import repair
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions
from eupe_pipeline.jobs.training import launch
from eupe_pipeline.jobs.training.options import TrainOptions, Watch
from eupe_pipeline.pipeline.commands.main import cli, main
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.pipeline.reports import page_contents
from eupe_pipeline.pipeline.reports.page_contents import PictureChoice, ReportOptions
from eupe_pipeline.storage import index as indexing
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.index import IndexOptions
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec
from eupe_pipeline.student.export import latency
from eupe_pipeline.student.export.export import ExportOptions
from eupe_pipeline.student.export.latency import LatencyOptions

DENSE = "--data /d --size 32 --device cpu --weights /w --out /o --dry-run"
HEAD = f"{DENSE} --protocol ours --steps 5 --batch-size 3 --evaluate-every 7 --seed 9 --allow-overlap"
CLASSIFIED = "--store /s --train a --test b --train-images 5 --test-images 6 --size 32 --crop-fraction 0.5 --batch-size 3 --device cpu"
DENSE_FIELDS: dict[str, Any] = {
    "model": "m", "data": Path("/d"), "size_px": 32, "device": "cpu", "weights": Path("/w"), "out": Path("/o"), "dry_run": True,
}  # fmt: skip
HEAD_FIELDS: dict[str, Any] = {
    **DENSE_FIELDS, "protocol": "ours", "steps": 5, "batch_size": 3, "evaluate_every": 7, "seed": 9, "allow_overlap": True,
}  # fmt: skip
CLASSIFIED_FIELDS: dict[str, Any] = {
    "model": "m", "store": "/s", "train_set": "a", "test_set": "b", "train_images": 5, "test_images": 6, "size_px": 32,
    "crop_fraction": 0.5, "batch_size": 3, "device": "cpu", "weights": Path("/w"), "out": Path("/o"), "dry_run": True,
    "allow_overlap": True,
}  # fmt: skip


def asked(monkeypatch: pytest.MonkeyPatch, module: Any, job: str, words: str) -> Any:
    """The request that a command hands to its job."""
    found: list[Any] = []

    def catch(options: Any, on_event: Any) -> dict[str, Any]:
        found.append(options)
        return {"findings": [], "left": []}

    monkeypatch.setattr(module, job, catch)
    assert main([*words.split(), "--json"]) == 0
    (options,) = found
    assert pickle.loads(pickle.dumps(options)) == options
    return options


@pytest.mark.parametrize(("module", "job", "words", "request_"), [
    (indexing, "index", "index /photos --store /s --name n --verify --dense-targets --orientation stored --max-bad-share 0.5",
     IndexOptions("/photos", "/s", "n", 0.5, True, True, "stored")),
    (knn, "evaluate_knn", f"evaluate knn m {CLASSIFIED} --weights /w --out /o --dry-run --allow-overlap", KnnOptions(**CLASSIFIED_FIELDS)),
    (linear, "evaluate_linear", f"evaluate linear m {CLASSIFIED} --weights /w --out /o --dry-run --allow-overlap --seed 4",
     LinearOptions(**CLASSIFIED_FIELDS, seed=4)),
    (segmentation, "evaluate_segmentation",
     f"evaluate segmentation m {HEAD} --dataset other --classes 4 --zero-ignored --ignore-index none",
     SegmentationOptions(**HEAD_FIELDS, dataset="other", classes=4, zero_is_ignored=True, ignore=None)),
    (depth, "evaluate_depth", f"evaluate depth m {HEAD} --whole --per-metre 2",
     DepthOptions(**HEAD_FIELDS, nyu_crops=False, per_metre=2.0)),
    (correspondence, "evaluate_correspondence",
     f"evaluate correspondence m {DENSE} --protocol paper --pairs-per-category 3 --split val",
     CorrespondenceOptions(**DENSE_FIELDS, protocol="paper", pairs_per_category=3, split="val")),
    (zero_shot, "evaluate_zero_shot",
     "evaluate zero-shot m --store /s --data b --text /t --classes /c --teacher x --proxy /p --test-images 6 --size 32 "
     "--crop-fraction 0.5 --batch-size 3 --device cpu --weights /w --out /o --dry-run",
     ZeroShotOptions(
         model="m", data="b", store="/s", text=Path("/t"), classes=Path("/c"), teacher="x", proxy=Path("/p"), test_images=6, size_px=32,
         crop_fraction=0.5, batch_size=3, device="cpu", weights=Path("/w"), out=Path("/o"), dry_run=True)),
    (repair, "repair_features", "features repair key --store /s --teacher t --weights /w --dry-run",
     RepairOptions("/s", "key", TeacherRequest("t", Path("/w")), True)),
    (repair, "repair_features", "features repair --store /s", RepairOptions("/s")),
    (repair, "fidelity", "features fidelity key --store /s --teacher t --sample 5", FidelityOptions("/s", "key", TeacherRequest("t"), 5)),
    (export_run, "export_run", "export /run --format timm --format onnx --out /o --size 32 --adapters --store /s --proxy s3://b/p "
     "--evaluation /e.json --target edge --precision fp16 --batch 4",
     ExportOptions(Path("/run"), Path("/o"), ("timm", "onnx"), 32, True, "/s", "s3://b/p", (Path("/e.json"),), "edge", "fp16", 4)),
    (latency, "latency", "benchmark latency /o --threads 2 --warmup 3 --calls 4 --runtime eager",
     LatencyOptions(Path("/o"), 2, 3, 4, ("eager",))),
    (page_contents, "report", "report /a /b --store /s --features k --verify --image /i.png --query q --model m --size 32 "
     "--model-size m=48 --weights m=/w --foreground --out /page.html",
     ReportOptions(Path("/page.html"), (Path("/a"), Path("/b")), "/s", ("k",), True,
                   PictureChoice((Path("/i.png"),), ("m",), 32, {"m": 48}, {"m": "/w"}, True, ("q",)))),
])  # fmt: skip
def test_a_command_fills_every_field_of_its_request(
    monkeypatch: pytest.MonkeyPatch, module: Any, job: str, words: str, request_: object
) -> None:
    assert asked(monkeypatch, module, job, words) == request_


def test_an_extraction_is_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "extract-features --store /s --data d --teacher a --teacher b --teacher-size a=32 --weights b=/w --teacher-device b=cuda:1 "
        "--precision bf16 --views 3 --codec fp16 --tokens-per-view 7 --grid 4x5 --shard-images 9 --batch-size auto --constants imagenet "
        "--allow-random-weights --pixels 64 --photometric student_only --view-kind random_resized_crop --seed 6 --statistics-batches 8 "
        "--normalisation phi-s --statistics-from k --workers 2 --num-gpus 0.5 --compile --teachers-at-once 1 --address auto "
        "--max-bad-share 0.25 --dry-run"
    )
    views = ViewSpec(views_per_image=3, seed=6, photometric="student_only", pixels=StoredPixels(64))
    teachers = (TeacherRequest("a", size_px=32), TeacherRequest("b", weights=Path("/w"), device="cuda:1"))
    assert asked(monkeypatch, extract, "extract_features", words) == ExtractOptions(
        "/s", "d", teachers, views, 9, "fp16", 7, (4, 5), "imagenet", True, "bf16", 8, "phi-s", ("k",), None, 2, 0.5, True, 1, "auto",
        0.25, True,
    )  # fmt: skip
    told = asked(monkeypatch, extract, "extract_features", "extract-features --store /s --data d --teacher a --recipe eupe-stage2 --seed 6")
    assert told.view_values["seed"] == {"value": 6, "origin": "--seed, instead of the recipe's 0"}


def test_a_training_is_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "train --stage 2 --store /s --data d --features f --features g --set run.steps=7 --out /run --targets live --teacher t --teacher u "
        "--student vit-mini --workers 2 --address auto --follow 2 --views 3 --shard-cache /cache --evaluate knn --every 5 "
        "--evaluate-data e --evaluate-images 40 --allow-overlap --allow-random-weights"
    )
    resolved = load_recipe("eupe-stage2", stage=2, settings=["run.steps=7", "teacher.source=live", "student.architecture=vit-mini"])
    expected = TrainOptions(
        resolved.recipe, "/s", ("f", "g"), "/run", "d", resolved.origins, None, ("t", "u"), ("vit-mini",), 2, "auto", "refuse", 3, 120.0,
        Path("/cache"), Watch("knn", 5, "e", 40, True), True,
    )  # fmt: skip
    assert asked(monkeypatch, launch, "train", words) == expected
    mixed = asked(
        monkeypatch, launch, "train", "train --stage 3 --store /s --data a=0.25 --data b=0.75 --features f --out s3://b/r --proxy /p"
    )
    assert (mixed.data, dict(mixed.recipe.data.shares), mixed.datasets) == ("", {"a": 0.25, "b": 0.75}, ["a", "b"])
    assert (mixed.out, mixed.proxy, mixed.live_teachers) == ("s3://b/r", "/p", ("/p",))


def test_one_name_where_several_belong_is_refused_with_the_right_form() -> None:
    recipe = load_recipe("eupe-stage2", stage=2).recipe
    for name in ("features", "teachers", "students"):
        values: dict[str, Any] = {"features": ("f",), name: "dinov3"}
        with pytest.raises(BadInput, match=rf"{name} is a list of names, such as \('dinov3',\)"):
            TrainOptions(recipe=recipe, store="s", out="o", **values)
    for teachers in ("dinov3", ("dinov3",)):
        with pytest.raises(BadInput, match=r"teachers is a list of TeacherRequest, .*got 'dinov3'"):
            ExtractOptions("s", "d", teachers)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="statistics_from is a list"):
        ExtractOptions("s", "d", (TeacherRequest("t"),), statistics_from="k")  # type: ignore[arg-type]


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def test_every_option_is_a_typed_parameter_of_its_command() -> None:
    seen = 0
    for command in commands(cli):
        assert command.callback is not None
        names: set[str] = set()
        for name, one in inspect.signature(command.callback).parameters.items():
            shared = typing.get_args(one.annotation) if one.kind is one.VAR_KEYWORD else ()
            names |= set(typing.get_type_hints(shared[0])) if shared else {name}
        assert names == {one.name for one in command.params}, command.name
        seen += 1
    assert seen > 25


def test_a_number_that_cannot_be_counted_with_is_refused_before_a_request_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "knn", "m", "--train", "a", "--test", "b", "--crop-fraction", "nan"]) == 2
    assert "nan is not a number" in capsys.readouterr().err
    assert main(["recipe", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"]
