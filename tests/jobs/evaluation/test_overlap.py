"""Images that are tested on and learnt from are found by their bytes, whatever they are called and wherever they lie."""

import io
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.depth import evaluate_depth
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize
from eupe_pipeline.jobs.evaluation.segmentation import evaluate_segmentation
from eupe_pipeline.jobs.evaluation.split_checks import MOST_SHARED, check_overlap, digests_of
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.probes.evaluation_records import list_records
from PIL import Image

from ..evaluation_request import evaluate_knn, evaluate_linear
from ..oracle import ColourEncoder, oracle_model
from ..training.test_train import RECIPE
from ..training.test_train_mixture import MIXED, mixed
from ..training_request import train
from . import test_depth as of_depth
from . import test_segmentation as of_masks

__all__ = ["mixed"]


@dataclass(frozen=True)
class Sets:
    """A writable copy of the tiny store, of its run and of its 24 images, and where other data may lie."""

    store: FeatureStore
    run: Path
    images: Path
    root: Path


@pytest.fixture
def sets(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sets:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_store.store.url.removeprefix("file://"), tmp_path / "store")
    shutil.copytree(tiny_store.teacher_run, tmp_path / "run")
    return Sets(FeatureStore.open(str(tmp_path / "store")), tmp_path / "run", tiny_store.teacher_run.parent / "images", tmp_path)


def fresh(root: Path, count: int, seed: int = 1, classes: int = 3) -> Path:
    """Images of noise in a folder a class."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"new{number}.png")
    return root


def as_tar(folder: Path, path: Path) -> Path:
    """The folder's images under numbers, each with its class beside it."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(sorted(folder.rglob("*.*"))):
            for ending, data in ((image.suffix, image.read_bytes()), (".cls", image.parent.name.removeprefix("class").encode())):
                member = tarfile.TarInfo(f"{number:06d}{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def with_copies(sets: Sets, count: int, copies: int) -> Path:
    """A folder of fresh images and, under other names, some that the tiny store was made of."""
    root = fresh(sets.root / f"with-{copies}-copies", count)
    for number, image in enumerate(sorted(sets.images.rglob("*.*"))[:copies]):
        shutil.copy(image, root / image.parent.name / f"renamed{number}{image.suffix}")
    return root


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear])
def test_renamed_copies_of_training_images_are_refused_with_their_number_and_names(sets: Sets, evaluate: Any) -> None:
    with pytest.raises(BadInput, match=r"5 of 35 test images are also learnt from, by their bytes \(class\d/renamed.*--allow-overlap"):
        evaluate(str(sets.run), sets.store, "photos", str(with_copies(sets, 30, 5)))
    assert list_records(sets.run) == []


def test_a_tar_of_the_training_folder_is_the_training_folder(sets: Sets) -> None:
    folder = fresh(sets.root / "folder", 12)
    with pytest.raises(BadInput, match="12 of 12 test images are also learnt from"):
        evaluate_knn(str(sets.run), sets.store, str(as_tar(folder, sets.root / "again.tar")), str(as_tar(folder, sets.root / "other.tar")))
    build_index(sets.store.objects, str(folder), "one")
    build_index(sets.store.objects, str(shutil.copytree(folder, sets.root / "moved")), "two")
    with pytest.raises(BadInput, match="12 of 12 test images are also learnt from"):
        evaluate_knn(str(sets.run), sets.store, "one", "two")


def test_cached_tokens_are_checked_as_images_are(sets: Sets) -> None:
    with pytest.raises(BadInput, match="24 of 24 test images are also learnt from"):
        evaluate_knn("tiny-teacher", sets.store, "photos", "photos")


def test_only_the_images_that_are_taken_count(sets: Sets) -> None:
    size = EvaluationSize(train_images=4, test_images=4, allow_overlap=True)
    result = evaluate_knn(str(sets.run), sets.store, "photos", "photos", size=size)
    dataset = sets.store.dataset("photos")
    assert list(digests_of(dataset, [3, 7, 23])) == [dataset.row(image).sha256 for image in (3, 7, 23)]
    assert 0 <= result["test_images_in_train"] < 4


def test_what_is_allowed_is_said_and_recorded(sets: Sets, events: Any) -> None:
    seen, on_event = events
    size = EvaluationSize(allow_overlap=True)
    result = evaluate_knn(str(sets.run), sets.store, "photos", str(with_copies(sets, 30, 5)), size=size, on_event=on_event)
    assert result["test_images_in_train"] == 5
    assert any(event["event"] == "warning" and "measures memory as well" in event["text"] for event in seen)
    (record,) = list_records(sets.run)
    assert record["results"]["test_images_in_train"] == 5


def test_disjoint_sets_are_evaluated_without_a_word(sets: Sets, events: Any) -> None:
    seen, on_event = events
    result = evaluate_knn(str(sets.run), sets.store, "photos", str(fresh(sets.root / "new", 12)), on_event=on_event)
    assert result["test_images_in_train"] == 0
    assert not [event for event in seen if event["event"] == "warning"]


def test_a_thousandth_is_said_and_more_refused() -> None:
    tested, said = [bytes([number % 256, number // 256]) for number in range(2000)], list[dict[str, Any]]()

    def check(learnt: Sequence[bytes]) -> int:
        return check_overlap(learnt, tested, str, where="a, b", allowed=False, on_event=said.append)

    assert MOST_SHARED == 0.001
    assert check([b"other"]) == 0
    assert said == []
    assert check(tested[:2]) == 2
    assert "2 of 2,000 test images are also learnt from, by their bytes (0, 1): a, b" in said[0]["text"]
    with pytest.raises(BadInput, match="3 of 2,000"):
        check(tested[:3])


def watched(sets: Sets, out: str, data: str, **more: Any) -> dict[str, Any]:
    recipe = replace(RECIPE, run=replace(RECIPE.run, steps=2))
    return train(recipe, sets.store, ["tiny-teacher"], data="photos", out=sets.root / "runs" / out, watch=Watch("knn", 2, data, 40), **more)


def test_an_evaluation_while_training_refuses_images_that_are_trained_on(sets: Sets) -> None:
    build_index(sets.store.objects, str(with_copies(sets, 30, 3)), "held-out")
    with pytest.raises(BadInput, match=r"3 of 33 test images are also learnt from.*photos@\w+ is trained on, held-out@\w+ evaluated"):
        watched(sets, "refused", "held-out")
    assert not list((sets.root / "runs" / "refused" / "checkpoints").glob("*"))
    build_index(sets.store.objects, str(fresh(sets.root / "clean", 30, seed=5)), "clean")
    assert watched(sets, "clean", "clean")["steps"] == 2


def test_images_that_the_run_was_distilled_on_are_said(sets: Sets, events: Any) -> None:
    seen, on_event = events
    recipe = replace(RECIPE, run=replace(RECIPE.run, steps=2))
    train(recipe, sets.store, ["tiny-teacher"], data="photos", out=sets.root / "runs" / "student")
    train_set, test_set = str(fresh(sets.root / "new", 12)), str(with_copies(sets, 12, 5))
    size = EvaluationSize(allow_overlap=True)  # the fresh ones are equal
    evaluate_knn(str(sets.root / "runs" / "student"), sets.store, train_set, test_set, size=size, on_event=on_event)
    assert any("5 of 17 test images are among those that" in event.get("text", "") for event in seen)


def test_copies_inside_the_evaluated_set_are_no_neighbours_of_themselves(sets: Sets, events: Any) -> None:
    seen, on_event = events
    folder = fresh(sets.root / "twice", 24, seed=6)
    for image in sorted(folder.rglob("*.png"))[:6]:
        shutil.copy(image, image.with_name(f"again-{image.name}"))
    build_index(sets.store.objects, str(folder), "twice")
    watched(sets, "out", "twice", on_event=on_event)
    assert any(event["event"] == "note" and "6 images of twice@" in event["text"] for event in seen)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_validation_pictures_under_other_names_are_found(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, events: Any) -> None:
    seen, on_event = events
    model, root = oracle_model(tmp_path / "model", ColourEncoder()), tmp_path / "data"
    monkeypatch.setattr(f"eupe_pipeline.jobs.evaluation.{kind}.open_dense_model", lambda options: model)
    pictures, targets = ("images", "annotations") if kind == "segmentation" else ("rgb", "depth")
    for split, count in (("train", 3), ("val", 2)):
        if kind == "segmentation":
            of_masks.draw_pictures(root, count, split)
        else:
            of_depth.planes(root, count, split)
    for folder in (pictures, targets):
        shutil.copy(root / folder / "train" / "1.png", root / folder / "val" / "another.png")

    def evaluate(**more: Any) -> dict[str, Any]:
        if kind == "segmentation":
            return evaluate_segmentation(replace(of_masks.OPTIONS, data=root, steps=2, **more), on_event)
        return evaluate_depth(replace(of_depth.OPTIONS, data=root, steps=2, **more), on_event)

    with pytest.raises(BadInput, match=r"1 of 3 test images are also learnt from, by their bytes \((val|rgb/val)?/?another"):
        evaluate()
    assert evaluate(allow_overlap=True)["test_images_in_train"] == 1
    assert any(event["event"] == "warning" and "another.png" in event["text"] for event in seen)


def test_the_command_refuses_with_status_2_and_takes_the_option(sets: Sets, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "knn", str(sets.run), "--store", str(sets.root / "store"), "--train", "photos", "--test", "photos"]
    assert main(words) == 2
    assert "24 of 24 test images are also learnt from" in capsys.readouterr().err
    assert main([*words, "--allow-overlap"]) == 0


def test_every_dataset_of_a_mixture_counts_as_trained_on(mixed: FeatureStore, tmp_path: Path) -> None:
    held_out = fresh(tmp_path / "held-out", 20, seed=9)
    (image,) = (place for place in Path(mixed.dataset("few").source).rglob("*") if mixed.dataset("few").row(2).id.endswith(place.name))
    shutil.copy(image, held_out / "class1" / "renamed.png")
    build_index(mixed.objects, str(held_out), "held-out")
    with pytest.raises(BadInput, match=r"1 of 21 test images are also learnt from.*few@\w+, many@\w+ is trained on"):
        train(MIXED, mixed, ["teacher"], out=tmp_path / "run", watch=Watch("knn", 2, "held-out", 40))
