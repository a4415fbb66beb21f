"""int8 ranges are measured on the run's own views, or a folder's pictures: the same ones each time, never those compared."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.pixels import view_pixels
from eupe_pipeline.storage.views.view_spec import Input
from eupe_pipeline.student.quantised.sample import drawn, sample_of_folder, sample_of_views
from PIL import Image

WANTED = Input(32, "bicubic")


def test_numbers_are_drawn_once_each_and_the_same_on_every_machine() -> None:
    assert drawn(10, 4) == [3, 9, 6, 7]
    assert sorted(drawn(10, 99)) == list(range(10))
    many = drawn(10**9, 1000)
    assert len(set(many)) == 1000 == len(many)
    assert max(many) > 9 * 10**8
    assert many[:3] == [950_425_284, 186_816_692, 348_750_588]


def test_views_are_those_of_the_run_and_none_is_both_measured_and_compared(tiny_store: Any) -> None:
    views = tiny_store.store.features("tiny-teacher").views
    sample = sample_of_views(tiny_store.store.url, [views.key], 20, WANTED)
    assert (len(sample.measured_BHWC), len(sample.compared_BHWC)) == (20, 9)
    assert views.key in sample.source
    known = [pixels.tobytes() for pixels in view_pixels(views, np.arange(views.rows), WANTED)]
    rows = [known.index(pixels.numpy().tobytes()) for pixels in (*sample.compared_BHWC, *sample.measured_BHWC)]
    assert len(set(rows)) == len(rows)
    again = sample_of_views(tiny_store.store.url, [views.key], 20, WANTED)
    assert bool((again.measured_BHWC == sample.measured_BHWC).all())


def test_views_of_images_that_failed_are_left_out(tiny_store: Any) -> None:
    views = tiny_store.store.features("tiny-gaps").views
    sample = sample_of_views(tiny_store.store.url, [views.key], 256, WANTED)
    failed = sum(len(views.failed_images(shard)) for shard in range(views.shards))
    assert len(sample.measured_BHWC) + len(sample.compared_BHWC) == views.rows - 2 * failed


def test_each_set_of_a_mixture_gives_its_share(tiny_store: Any) -> None:
    keys = [tiny_store.store.features(name).views.key for name in ("tiny-teacher", "tiny-gaps")]
    sample = sample_of_views(tiny_store.store.url, keys, 256, WANTED)
    assert len(sample.measured_BHWC) + len(sample.compared_BHWC) > tiny_store.store.features("tiny-teacher").views.rows
    assert all(key in sample.source for key in keys)


def test_a_store_without_the_views_is_refused_with_the_two_ways_out(tiny_store: Any) -> None:
    with pytest.raises(BadInput, match=r"does not hold the views.*--store, or give --calibrate FOLDER"):
        sample_of_views(tiny_store.store.url, ["photos@ffffffffffff"], 8, WANTED)
    with pytest.raises(BadInput, match=r"does not say which views"):
        sample_of_views(tiny_store.store.url, [], 8, WANTED)


def test_a_folders_pictures_are_upright_whole_and_square(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(14):
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    sample = sample_of_folder(tmp_path, 256, WANTED)
    assert (len(sample.measured_BHWC), len(sample.compared_BHWC)) == (12, 2)
    wanted = {np.asarray(Image.open(tmp_path / f"{n}.png").resize((32, 32), Image.Resampling.BICUBIC)).tobytes() for n in range(14)}
    assert {pixels.numpy().tobytes() for pixels in (*sample.measured_BHWC, *sample.compared_BHWC)} == wanted
    shutil.rmtree(tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        sample_of_folder(tmp_path, 256, WANTED)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(BadInput, match="at least, got 1 pictures of"):
        sample_of_folder(tmp_path, 256, WANTED)
