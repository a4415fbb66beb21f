"""Photos become tokens of the encoders that were named, at the size that was asked for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.pipeline.pictures.patch_tokens import Encoders, Photo, patch_tokens, read_photos, short_labels
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.sources.decode import BadImage
from eupe_pipeline.storage.views.view_spec import Input


def gradient(height: int = 40, width: int = 56) -> Photo:
    y, x = np.mgrid[0:height, 0:width]
    return Photo("slope", np.stack([4 * y, 4 * x, 2 * (y + x)], -1).clip(0, 255).astype(np.uint8))


def test_tokens_are_those_of_the_encoder_on_the_central_square(tiny_store: Any) -> None:
    photo = gradient()
    images, found = patch_tokens(Encoders([str(tiny_store.teacher_run)]), [photo, photo], lambda event: None)
    assert [image.shape for image in images] == [(40, 40, 3)] * 2
    expected = tiny_store.teacher(torch.from_numpy(photo.square(Input(16)).copy())[None]).patch_BHWD.numpy()
    assert list(found) == ["teacher"]
    np.testing.assert_allclose(found["teacher"], np.concatenate([expected, expected]), atol=1e-5)


def test_the_size_is_for_all_and_one_model_may_have_its_own(tiny_store: Any) -> None:
    run = str(tiny_store.teacher_run)
    small = patch_tokens(Encoders([run], 32), [gradient()], lambda event: None).tokens["teacher"]
    large = patch_tokens(Encoders([run], 32, sizes={run: 64}), [gradient()], lambda event: None).tokens["teacher"]
    assert large.shape[1:3] == (2 * small.shape[1], 2 * small.shape[2])


def test_a_size_off_the_stride_is_refused(tiny_store: Any) -> None:
    with pytest.raises(BadInput, match="multiples of"):
        patch_tokens(Encoders([str(tiny_store.teacher_run)], 33), [gradient()], lambda event: None)


@pytest.mark.parametrize(("values", "why"), [
    ({"names": []}, "at least one encoder"),
    ({"names": ["a", "a"]}, "named twice"),
    ({"names": ["a"], "sizes": {"b": 32}}, "--model-size names 'b'"),
    ({"names": ["a"], "weights": {"c": "x"}}, "--weights names 'c'"),
])  # fmt: skip
def test_encoders_that_contradict_themselves_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Encoders(**values)


def test_labels_are_the_shortest_ends_that_tell_runs_apart(tmp_path: Path) -> None:
    for name in ("a/stage2", "b/stage2", "b/stage3"):
        (tmp_path / name).mkdir(parents=True)
    assert short_labels([str(tmp_path / "a/stage2"), "clip-l"]) == ["stage2", "clip-l"]
    assert short_labels([str(tmp_path / "a/stage2"), str(tmp_path / "b/stage2")]) == ["a/stage2", "b/stage2"]


def test_a_photo_that_is_not_there_and_one_that_is_no_image_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    with pytest.raises(BadInput, match=r"gone\.jpg is not an image file"):
        read_photos([tmp_path / "gone.jpg"])
    with pytest.raises(BadImage, match=r"notes\.jpg"):
        read_photos([tmp_path / "notes.jpg"])


def test_a_photo_is_never_enlarged_for_people() -> None:
    assert gradient().shown().shape == (40, 40, 3)
    assert gradient(900, 700).shown().shape == (448, 448, 3)
    assert gradient(900, 700).shown((384, 512)).shape == (336, 448, 3)
    assert gradient(40, 56).shown((96, 32)).shape == (40, 13, 3)


def test_an_oblong_input_sees_the_central_part_of_its_shape_and_so_does_who_looks(tiny_store: Any) -> None:
    photo, run = gradient(), str(tiny_store.teacher_run)
    images, found = patch_tokens(Encoders([run], (16, 32)), [photo], lambda event: None)
    assert images[0].shape == (28, 56, 3)
    np.testing.assert_array_equal(images[0], photo.pixels[6:34])  # 40 × 56 px: as wide as the photo
    cut = Photo("cut", photo.pixels[6:34]).square(Input((16, 32)))
    expected = tiny_store.teacher.at_size((16, 32))(torch.from_numpy(cut.copy())[None]).patch_BHWD.numpy()
    assert found["teacher"].shape[1:3] == (2, 4)
    np.testing.assert_allclose(found["teacher"], expected, atol=1e-5)


def test_encoders_whose_inputs_have_several_shapes_are_not_drawn_beside_one_photo(tiny_store: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_store.teacher_run, other)
    encoders = Encoders([str(tiny_store.teacher_run), str(other)], (16, 32), sizes={str(other): 32})
    with pytest.raises(BadInput, match="takes 16x32 px, other 32 px; give both inputs of one aspect ratio"):
        patch_tokens(encoders, [gradient()], lambda event: None)
