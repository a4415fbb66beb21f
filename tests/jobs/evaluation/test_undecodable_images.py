"""Images that cannot be decoded: refused above the limit of `index`, below it said, counted and recorded, in every way to a figure."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.evaluation.agreement import AgreementOptions, evaluate_agreement
from eupe_pipeline.jobs.evaluation.correspondence import evaluate_correspondence
from eupe_pipeline.jobs.evaluation.depth import evaluate_depth
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, knn_of_features
from eupe_pipeline.jobs.evaluation.segmentation import evaluate_segmentation
from eupe_pipeline.jobs.evaluation.zero_shot import ZeroShotOptions, evaluate_zero_shot
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.events import ignore_event
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import BadImage
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.probes.evaluation_records import list_records

from ...teachers.tiny_clip import write_clip
from ..evaluation_request import evaluate_knn, evaluate_linear
from ..oracle import ColourEncoder, oracle_model
from ..training.test_train import RECIPE
from ..training_request import train
from . import test_correspondence as of_pairs
from . import test_depth as of_depth
from . import test_segmentation as of_masks
from .test_overlap import Sets, fresh, sets

__all__ = ["sets"]

Evaluate = Callable[..., dict[str, Any]]
BOTH: list[Evaluate] = [evaluate_knn, partial(evaluate_linear, powers=(0.0,))]


def cut(folder: Path, count: int) -> list[Path]:
    """Cut the first PNGs of a folder to half of their bytes: `index` reads the size in their headers, nobody reads their pixels."""
    files = sorted(folder.rglob("*.png"))[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return files


def warnings_of(seen: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in seen if event["event"] == "warning"]


@pytest.mark.parametrize("evaluate", BOTH)
@pytest.mark.parametrize("limit", [None, 20])
def test_more_than_the_limit_are_refused_with_their_number_and_names(sets: Sets, evaluate: Evaluate, limit: int | None) -> None:
    test = fresh(sets.root / "test", 24, seed=3)
    names = [str(path.relative_to(test)) for path in cut(test, 8 if limit is None else 24)]
    size = EvaluationSize(test_images=limit)
    with pytest.raises(BadInput, match=r"cannot be decoded, more than the limit of 0\.10%") as caught:
        evaluate(str(sets.run), sets.store, "photos", str(test), size=size)
    said = str(caught.value)
    assert f"{limit or 8} of {limit or 24} images of " in said
    assert limit or all(f"{name}: " in said for name in names[:3])
    assert "index them under another --name" in said
    assert limit or f"({names[0]}: cannot be decoded (" in said
    assert list_records(sets.run) == []


def test_images_to_learn_from_are_held_to_the_same_limit(sets: Sets) -> None:
    learnt = fresh(sets.root / "learnt", 24, seed=3)
    cut(learnt, 1)
    with pytest.raises(BadInput, match=r"1 of 24 images of .*learnt@\w+ .*more than the limit of 0\.10%"):
        evaluate_knn(str(sets.run), sets.store, str(learnt), "photos")


def test_the_advised_command_ends_in_a_figure_of_what_is_left(sets: Sets, events: Any) -> None:
    seen, on_event = events
    test = fresh(sets.root / "test", 24, seed=3)
    broken = cut(test, 8)
    with pytest.raises(BadInput) as caught:
        evaluate_knn(str(sets.run), sets.store, "photos", str(test))
    (command,) = re.findall(r"run `eupe-pipeline (.*?)`", str(caught.value))
    for file in broken:
        file.unlink()
    assert main(shlex.split(command)) == 0
    result = evaluate_knn(str(sets.run), sets.store, "photos", str(test), on_event=on_event)
    assert result["test_images"] == 16
    assert "test_images_failed" not in result
    assert warnings_of(seen) == []


def test_the_computation_stops_at_the_shard_that_passes_the_limit(sets: Sets, monkeypatch: pytest.MonkeyPatch, events: Any) -> None:
    seen, on_event = events
    monkeypatch.setattr("eupe_pipeline.jobs.evaluation.pooled_features.IMAGES_PER_SHARD", 4)
    test = fresh(sets.root / "test", 24, seed=3)
    cut(test, 6)
    with pytest.raises(BadInput, match="4 of 24 images of"):
        evaluate_knn(str(sets.run), sets.store, "photos", str(test), on_event=on_event)
    assert not [event for event in seen if re.match("features of .*-test$", event.get("stage", ""))]


@pytest.mark.parametrize("evaluate", BOTH)
@pytest.mark.parametrize("limit", [None, 20])
def test_below_the_limit_they_are_said_counted_and_recorded(sets: Sets, evaluate: Evaluate, limit: int | None, events: Any) -> None:
    seen, on_event = events
    test = fresh(sets.root / "test", 24, seed=3)
    names = [str(path.relative_to(test)) for path in cut(test, 1 if limit is None else 8)]
    size = EvaluationSize(test_images=limit, max_bad_share=0.5)
    result = evaluate(str(sets.run), sets.store, "photos", str(test), size=size, on_event=on_event)
    failed, images = result["test_images_failed"], limit or 24
    assert failed == 1 or limit
    assert result["test_images"] == images - failed
    assert "train_images_failed" not in result
    (said,) = warnings_of(seen)
    assert re.match(rf"{failed} of {images} images of .*test@\w+ \(", said)
    assert any(f"{name}: " in said for name in names)
    assert "have no tokens because they could not be decoded, and are left out" in said
    (record,) = list_records(sets.run)
    assert record["results"]["test_images_failed"] == failed
    seen.clear()
    again = evaluate(str(sets.run), sets.store, "photos", str(test), size=size, on_event=on_event)
    assert (again["already"], again["test_images_failed"]) == (True, failed)
    assert warnings_of(seen) == [f"{failed} of {images} test images have no tokens and were left out of this result"]


def test_zero_shot_counts_them_too_and_refuses_more_than_the_limit(sets: Sets) -> None:
    write_clip(sets.root / "clip")
    test = fresh(sets.root / "test", 24, seed=3)
    cut(test, 2)
    options = ZeroShotOptions(
        model=f"hf:{sets.root / 'clip'}", store=sets.store.url, data=str(test), text=sets.root / "clip", max_bad_share=0.5
    )
    result = evaluate_zero_shot(options)
    assert (result["test_images"], result["test_images_failed"]) == (22, 2)
    with pytest.raises(BadInput, match="2 of 24 images of"):
        evaluate_zero_shot(replace(options, max_bad_share=0.001, out=sets.root / "other"))


def extracted(sets: Sets, name: str, broken: int) -> str:
    """The key of tokens that the tiny teacher gave over 24 images, some of which cannot be decoded, as its user allowed."""
    cut(fresh(sets.root / name, 24, seed=10 + broken), broken)
    build_index(sets.store.objects, str(sets.root / name), name)
    teacher = (TeacherRequest(str(sets.run)),)
    asked = ExtractOptions(
        sets.store.url, name, teacher, ViewSpec(views_per_image=1, seed=8), images_per_shard=8, codec="fp32", statistics_batches=2,
        workers=0, max_bad_share=0.5, statistics_from=(sets.store.features("tiny-teacher").key,),
    )  # fmt: skip
    return str(extract_features(asked)["features"]["run"])


@pytest.mark.parametrize("evaluate", BOTH)
def test_of_extracted_tokens_any_number_is_said_and_none_refused(sets: Sets, evaluate: Evaluate, events: Any) -> None:
    seen, on_event = events
    keys = extracted(sets, "learnt", 2), extracted(sets, "tested", 8)
    result = evaluate(keys[0], sets.store, "learnt", "tested", on_event=on_event)
    assert (result["train_images"], result["train_images_failed"]) == (22, 2)
    assert (result["test_images"], result["test_images_failed"]) == (16, 8)
    assert [text.partition("@")[0] for text in warnings_of(seen)] == ["2 of 24 images of learnt", "8 of 24 images of tested"]
    seen.clear()
    figures = knn_of_features(sets.store, *keys, on_event=on_event)
    assert (figures["train_images_failed"], figures["test_images_failed"]) == (2, 8)
    assert len(warnings_of(seen)) == 2


def test_agreement_says_on_how_many_images_a_teacher_failed(sets: Sets, events: Any) -> None:
    seen, on_event = events
    key = extracted(sets, "tested", 3)
    train(RECIPE, sets.store, ["tiny-teacher"], data="photos", out=sets.root / "trained")
    asked = AgreementOptions(model=str(sets.root / "trained"), store=sets.store.url, features=(key,), out=sets.root / "out")
    result = evaluate_agreement(asked, on_event)
    assert (result["images"], result["images_failed"]) == (21, 3)
    assert any(text.startswith("3 of 24 images of tested@") for text in warnings_of(seen))
    assert evaluate_agreement(asked, ignore_event)["images_failed"] == 3


@pytest.mark.parametrize("evaluation", ["segmentation", "depth", "correspondence"])
def test_evaluations_of_patch_tokens_refuse_the_first_picture_that_they_cannot_read(
    evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = oracle_model(tmp_path / "model", ColourEncoder()), tmp_path / "data"
    monkeypatch.setattr(f"eupe_pipeline.jobs.evaluation.{evaluation}.open_dense_model", lambda options: model)
    for split, count in (("train", 4), ("val", 3)):
        if evaluation == "segmentation":
            of_masks.draw_pictures(data, count, split)
        elif evaluation == "depth":
            of_depth.planes(data, count, split)
    if evaluation == "correspondence":
        of_pairs.draw_pair(data, "cat", "0", 0)
    folder = {"segmentation": "images/val", "depth": "rgb/val", "correspondence": "JPEGImages"}[evaluation]
    (broken,) = cut(data / folder, 1)
    run: dict[str, Callable[[], dict[str, Any]]] = {
        "segmentation": lambda: evaluate_segmentation(replace(of_masks.OPTIONS, data=data, steps=2)),
        "depth": lambda: evaluate_depth(replace(of_depth.OPTIONS, data=data, steps=2)),
        "correspondence": lambda: evaluate_correspondence(replace(of_pairs.OPTIONS, data=data)),
    }
    with pytest.raises(BadImage, match=re.escape(str(broken))):
        run[evaluation]()
    assert list_records(tmp_path / "model") == []
