"""Stage 3 both ways in `plan`: its bytes are those that the extractions write, its agreement that of real sets, its hours by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.estimates.cost_model import SizedSet, cached_or_live
from eupe_pipeline.jobs.estimates.extraction import PlanOptions, plan_extraction
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import TeacherConfig
from PIL import Image

from ..training.test_train import RECIPE

SIZES = (24, 32, 16)
STAGE3 = replace(RECIPE, stage=3, student=replace(RECIPE.student, sizes_px=(16, 32)), teacher=TeacherConfig("live", SIZES))


def planned(options: Any, recipe: Any = STAGE3) -> dict[str, Any]:
    return dict(plan_extraction(PlanOptions(options, "vit-mini", 16, 100.0, batches=1, stage3=recipe))["stage 3"])


def test_the_two_ways_cost_what_a_hand_computes() -> None:
    sets = {"a": SizedSet(1_000, 0.1, 0), "b": SizedSet(4_000, 0.4, 36_000)}
    ways = cached_or_live(sets, 2, samples=72_000, student_s=0.05, store_bytes_per_s=10_000)
    assert ways["cached"] == {"bytes": 144_000_000, "extraction_hours": 4.0, "training_hours": 5.0, "hours": 9.0}, "reading bounds it"
    assert ways["live"] == pytest.approx({"bytes": 0, "extraction_hours": 0, "training_hours": 6.0, "hours": 6.0})
    assert ways["cached_costs_less_from_student"] == 4, "4 hours of teachers, of which each student saves one"
    free = cached_or_live({"a": SizedSet(1_000, 0.0, 5)}, 1, samples=10, student_s=1.0)
    assert free["cached_costs_less_from_student"] is None, "nothing is saved"


def test_its_bytes_and_its_agreement_are_those_of_the_sets_that_are_made(photos: Any) -> None:
    store, options, _ = photos
    plan = planned(replace(options, codec="int8"))
    assert list(plan["sets"]) == [f"teacher at {size} px" for size in SIZES]
    assert plan["samples"] == STAGE3.run.steps * STAGE3.run.batch_size
    assert plan["codecs"]["fp32"] == {"bytes": plan["codecs"]["fp32"]["bytes"], "cosine": pytest.approx(1.0), "relative_error": 0.0}
    own, label = str(extract_features(options)["features"]["teacher"]), "teacher at 32 px"
    at = replace(options, teachers=(replace(options.teachers[0], size_px=32),), statistics_from=(own,))
    exact, int8 = (extract_features(replace(at, codec=codec)) for codec in ("fp32", "int8"))
    row = plan["sets"][label]
    assert row["bytes"] <= int8["bytes_committed"] < 1.1 * row["bytes"] + 4096
    readers = [store.features(made["features"]["teacher"]) for made in (exact, int8)]
    live, stored = (reader.decode(reader.read(np.arange(reader.rows))) for reader in readers)
    error = np.linalg.norm(stored - live) / np.linalg.norm(live)
    assert row["relative_error"] == pytest.approx(error, rel=0.25)
    assert row["cosine"] == pytest.approx(1 - error**2 / 2, abs=1e-5)
    assert 0 < 1 - row["cosine"] < 1e-3
    ways, samples = plan["ways"], plan["samples"]
    forward = np.mean([1 / row["views_per_s"] for row in plan["sets"].values()])
    assert ways["cached"]["bytes"] == sum(row["bytes"] for row in plan["sets"].values())
    assert ways["live"]["training_hours"] == pytest.approx(samples * (0.01 + forward) / 3600)
    assert ways["cached"]["training_hours"] == pytest.approx(samples * 0.01 / 3600)


def test_sampled_tokens_are_compared_where_they_train_and_refused_where_they_cannot(photos: Any) -> None:
    _, options, _ = photos
    one = replace(STAGE3, student=replace(STAGE3.student, sizes_px=(32,)), teacher=TeacherConfig("live", (32,)))
    some = replace(options, teachers=(replace(options.teachers[0], size_px=32),), tokens_per_view=8)
    sampled = planned(some, one)["sampled"]["teacher at 32 px"]
    assert (sampled["tokens"], sampled["of"]) == (8, 16)
    assert 0.3 < sampled["cosine_of_means"] < 1
    with pytest.raises(BadInput, match=r"teacher at 24 px: .*leave --tokens-per-view out"):
        planned(some)


def test_of_letterboxed_views_only_tokens_that_see_the_image_are_compared(photos: Any) -> None:
    store, options, folder = photos
    (folder / "wide").mkdir()
    for number in range(4):  # two rows of a 4 × 4 grid see a picture of 64 × 32 pixels
        noise = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / "wide" / f"{number}.png")
    build_index(store.objects, str(folder / "wide"), "wide")
    one = replace(STAGE3, student=replace(STAGE3.student, sizes_px=(32,)), teacher=TeacherConfig("live", (32,)))
    teacher = replace(options.teachers[0], size_px=32)
    boxed = replace(options, data="wide", teachers=(teacher,), views=ViewSpec(kind="letterbox"))

    def cosine_of_means(tokens: int) -> float:
        return float(planned(replace(boxed, tokens_per_view=tokens), one)["sampled"]["teacher at 32 px"]["cosine_of_means"])

    assert cosine_of_means(8) == pytest.approx(1.0, abs=1e-6), "fp32: all eight that see the picture are kept"
    assert cosine_of_means(12) == pytest.approx(1.0, abs=1e-6), "no padding counts"
    assert cosine_of_means(2) < 0.999


def test_a_size_that_the_teacher_does_not_take_is_refused_before_anything_is_measured(photos: Any) -> None:
    with pytest.raises(BadInput, match="multiples of 8 px, got 20"):
        planned(photos[1], replace(STAGE3, teacher=TeacherConfig("live", (20,))))
