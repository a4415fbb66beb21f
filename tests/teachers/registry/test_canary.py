import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.teachers.registry.canary import MIN_COSINE, canary, canary_images, compare
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher


@pytest.fixture(scope="module")
def teacher(run_folder: Path) -> Teacher:
    return load_teacher(resolve_teacher(str(run_folder)))


def test_the_images_are_the_same_bytes_for_ever() -> None:
    digest = hashlib.sha256(canary_images(8, 64).tobytes()).hexdigest()
    assert digest == "91e1f3871cdf1d2524322a082d906772247ba84207cc2c818f59872901ce41d2"


def test_an_image_does_not_depend_on_how_many_are_made() -> None:
    assert np.array_equal(canary_images(3, 32), canary_images(8, 32)[:3])
    assert len({image.tobytes() for image in canary_images(8, 32)}) == 8


def test_another_size_shows_the_same_blocks() -> None:
    small, large = canary_images(2, 16), canary_images(2, 64)
    assert np.array_equal(small, large[:, ::4, ::4])


def test_the_same_teacher_loaded_twice_agrees(run_folder: Path, teacher: Teacher) -> None:
    again = load_teacher(resolve_teacher(str(run_folder)))
    assert compare(canary(teacher), canary(again)) >= MIN_COSINE


def test_a_record_survives_a_file_and_has_the_shapes_of_the_tokens(teacher: Teacher, tmp_path: Path) -> None:
    features = canary(teacher)
    assert {name: part.shape for name, part in features.items()} == dict.fromkeys(("corner", "middle", "cls"), (8, 48))
    np.savez(tmp_path / "canary.npz", **features)  # type: ignore[arg-type]
    with np.load(tmp_path / "canary.npz", allow_pickle=False) as loaded:
        assert compare(dict(loaded), features) == pytest.approx(1.0)


@pytest.mark.fault(17, "detected")
def test_another_channel_order_is_caught(teacher: Teacher) -> None:
    prep = replace(teacher.spec.preprocessing, channel_order="bgr")
    swapped = Teacher(replace(teacher.spec, preprocessing=prep), teacher.encoder)
    with pytest.raises(CacheMismatch, match="not the one that was recorded"):
        compare(canary(teacher), canary(swapped))


@pytest.mark.fault(17, "detected")
def test_a_transposed_grid_is_caught_by_the_corner(teacher: Teacher) -> None:
    features = canary(teacher)
    moved = {**features, "corner": np.roll(features["corner"], 1, axis=0)}
    with pytest.raises(CacheMismatch, match="corner token of canary image"):
        compare(features, moved)


@pytest.mark.fault(17, "detected")
@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_tokens_that_are_not_numbers_or_all_zero_are_caught(teacher: Teacher, value: float) -> None:
    features = canary(teacher)
    broken = {name: part.copy() for name, part in features.items()}
    broken["cls"][3] = value
    with pytest.raises(CacheMismatch, match="cls token of canary image 3"):
        compare(features, broken)


@pytest.mark.fault(17, "detected")
def test_other_shapes_and_a_lost_class_token_are_caught(teacher: Teacher) -> None:
    features = canary(teacher)
    without = {name: part for name, part in features.items() if name != "cls"}
    for other in (without, {**features, "cls": features["cls"][:, :8]}):
        with pytest.raises(CacheMismatch, match="other tokens"):
            compare(features, other)
