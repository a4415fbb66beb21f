"""Teachers on devices: what the user placed, what is dealt out, and what cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.jobs.extraction.work_orders import assign_devices, gpu_use
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore

NAMES = ("pecore-g", "pelang-g", "dinov3-h+")


def test_on_one_device_all_teachers_share_it() -> None:
    assert assign_devices(NAMES, "cpu", 1.0, {}) == dict.fromkeys(NAMES, "cpu")
    assert assign_devices(NAMES, "cuda", 1.0, {}) == dict.fromkeys(NAMES, "cuda")
    assert assign_devices(NAMES, "cuda", 0.5, {}) == dict.fromkeys(NAMES, "cuda")


def test_over_several_gpus_of_a_worker_they_are_dealt_out_in_turn() -> None:
    assert assign_devices(NAMES, "cuda", 2.0, {}) == {"pecore-g": "cuda:0", "pelang-g": "cuda:1", "dinov3-h+": "cuda:0"}
    assert assign_devices(NAMES, "cuda", 3.0, {}) == {"pecore-g": "cuda:0", "pelang-g": "cuda:1", "dinov3-h+": "cuda:2"}


def test_what_the_user_placed_stays_there_and_the_rest_is_dealt_out() -> None:
    placed = assign_devices(NAMES, "cuda", 2.0, {"pelang-g": "cuda:1"})
    assert placed == {"pecore-g": "cuda:0", "pelang-g": "cuda:1", "dinov3-h+": "cuda:1"}
    assert assign_devices(NAMES, "cuda", 1.0, {"dinov3-h+": "cpu"})["dinov3-h+"] == "cpu"


@pytest.mark.parametrize(
    ("device", "gpus", "chosen", "message"),
    [
        ("cuda", 1.0, {"pecore-g": "cuda:1"}, "give it more with --num-gpus 2"),
        ("cpu", 1.0, {"pecore-g": "cuda:0"}, "no CUDA device"),
        ("cuda", 1.0, {"pecore-g": "tpu"}, "devices are cpu, cuda:0"),
        ("cuda", 1.0, {"pecore-g": "meta"}, "devices are cpu, cuda:0"),
        ("cuda", 2.0, {"pecore": "cuda:1"}, "pecore-g"),
    ],
)
def test_a_place_that_is_not_there_is_refused(device: str, gpus: float, chosen: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        assign_devices(NAMES, device, gpus, chosen)


def test_where_a_teacher_runs_is_no_part_of_what_it_says(photos: Any) -> None:
    """Two teachers in one worker, one by an explicit device: the feature sets are those of two teachers on one."""
    _, options, root = photos
    apart = FeatureStore.create(str(root / "apart"))
    build_index(apart.objects, str(root / "images"), "photos")
    first = options.teachers[0]
    expected = extract_features(options)["features"]
    placed = extract_features(replace(options, store=apart.url, teachers=(TeacherRequest(first.name, device="cpu:0"),)))
    assert placed["features"] == expected
    assert "gpu_use" not in placed
    with pytest.raises(BadInput, match=r"no CUDA device|--num-gpus"):
        extract_features(replace(options, store=apart.url, teachers=(TeacherRequest(first.name, device="cuda:7"),)))


def test_the_use_of_gpus_is_absent_without_any() -> None:
    assert gpu_use([torch.device("cpu")]) is None
    assert gpu_use([]) is None


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch warns of its own deprecated parts
def test_a_compiled_teacher_passes_the_canary_of_the_one_that_was_not(photos: Any) -> None:
    """The feature set is the same, so the canary is too: the first run records it, the second one compares."""
    store, options, _ = photos
    first = extract_features(options)["features"]["teacher"]
    store.features(first).group.discard(1)
    again = extract_features(replace(options, compile=True))
    assert (again["features"]["teacher"], again["views_done"]) == (first, 16)
    assert store.features(first).complete
