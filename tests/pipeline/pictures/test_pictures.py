"""The `pictures` commands write what they promise from real photos, runs and caches."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.commands.main import main
from PIL import Image

Capture = pytest.CaptureFixture[str]


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def result(capture: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("extra", [[], ["--foreground"]])
def test_pca_puts_photos_in_rows_and_encoders_in_columns(
    tiny_store: Any, photos: Path, tmp_path: Path, capsys: Capture, extra: list[str]
) -> None:
    images = [str(photos / "cat" / "0.png"), str(photos / "dog" / "1.png")]
    arguments = ["--model", str(tiny_store.teacher_run), "--size", "32", "--out", str(tmp_path / "pca.png"), "--json", *extra]
    assert main(["pictures", "pca", *images, *arguments]) == 0
    found = result(capsys)
    page = opened(tmp_path / "pca.png")
    assert (page.width, page.height) == (found["width_px"], found["height_px"])
    assert page.height > page.width  # two photos, one encoder
    rows, columns = found["grids"]["teacher"]
    assert rows == columns >= 2


def test_similarity_marks_the_patch_and_is_bright_there(tiny_store: Any, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--model", str(tiny_store.teacher_run), "--size", "32", "--patch", "1,0", "--out", str(tmp_path / "one.png"), "--json"]
    assert main(["pictures", "similarity", str(photos / "cat" / "0.png"), *arguments]) == 0
    assert result(capsys)["patch"] == [1, 0]
    pixels = np.asarray(opened(tmp_path / "one.png")).reshape(-1, 3)
    assert (pixels == [253, 231, 37]).all(1).any()  # the scale's bright end: cosine 1


@pytest.mark.parametrize(("patch", "why"), [("9,9", "outside of the grid"), ("1", "is not ROW,COL")])
def test_a_patch_that_is_none_is_refused(tiny_store: Any, photos: Path, tmp_path: Path, capsys: Capture, patch: str, why: str) -> None:
    arguments = ["--model", str(tiny_store.teacher_run), "--size", "32", "--patch", patch, "--out", str(tmp_path / "one.png")]
    assert main(["pictures", "similarity", str(photos / "cat" / "0.png"), *arguments]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "one.png").exists()


def test_neighbours_give_the_picture_and_the_distances(tiny_store: Any, tmp_path: Path, capsys: Capture) -> None:
    query = tiny_store.features().views.dataset.row(4).id
    where = ["--store", tiny_store.store.url, "--out", str(tmp_path / "near.png"), "--json"]
    assert main(["pictures", "neighbours", "tiny-teacher", "--query", query, "--count", "3", *where]) == 0
    found = result(capsys)["neighbours"]
    assert list(found) == [query]
    assert list(found[query].values()) == sorted(found[query].values())
    assert opened(tmp_path / "near.png").width == 4 * 128 + 5 * 16
