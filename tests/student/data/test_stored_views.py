"""A store as a torch `Dataset`: the samples are the store's own rows, in any worker."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.student.data.stored_views import StoredViews
from torch.utils.data import DataLoader

SIZE_PX = 32


def views_of(tiny_store: Any, *features: str, size_px: int | None = None) -> StoredViews:
    return StoredViews(tiny_store.store.url, features, size_px)


def test_a_sample_is_the_stored_row_with_its_image_and_view(tiny_store: Any) -> None:
    data = views_of(tiny_store, "tiny-teacher", "tiny-int8", size_px=SIZE_PX)
    reader = tiny_store.features("tiny-int8")
    assert len(data) == reader.rows == 48
    sample, row = data[13], reader.dataset().row(6)
    assert (sample["id"], sample["view"], sample["label"]) == (row.id, 1, row.label)
    stored = reader.read(np.array([13]))
    assert np.array_equal(sample["tokens"]["tiny-int8"]["patch"].numpy(), reader.decode(stored)[0])
    assert np.array_equal(sample["tokens"]["tiny-int8"]["cls"].numpy(), stored.cls[0].astype(np.float32))
    drawn = reader.views.read(np.array([13]))
    expected = render(reader.dataset().read_image(6), drawn.crop[0], bool(drawn.flip[0]), SIZE_PX)
    assert np.array_equal(sample["pixels"].numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_each_row_once_with_or_without_workers(tiny_store: Any, workers: int) -> None:
    data = views_of(tiny_store, "tiny-teacher")
    processes = multiprocessing.get_context("forkserver")  # that has imported all once, for every worker
    processes.set_forkserver_preload(["eupe_pipeline.student.data.stored_views"])
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=7, shuffle=True, num_workers=workers, multiprocessing_context=processes if workers else None
    )
    seen: list[tuple[str, int]] = []
    for batch in loader:
        seen += zip(batch["id"], batch["view"].tolist(), strict=True)
        assert batch["tokens"]["tiny-teacher"]["patch"].dtype == torch.float32
    assert len(seen) == len(set(seen)) == 48


def test_rows_that_a_teacher_failed_on_are_left_out(tiny_store: Any) -> None:
    data = views_of(tiny_store, "tiny-gaps")
    assert len(data) == 46
    failed = tiny_store.features("tiny-gaps").dataset().row(5).id
    assert failed not in {data[number]["id"] for number in range(len(data))}


def test_it_travels_to_another_process_without_its_open_files(tiny_store: Any) -> None:
    data = views_of(tiny_store, "tiny-teacher")
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[3]["tokens"]["tiny-teacher"]["patch"], data[3]["tokens"]["tiny-teacher"]["patch"])


def test_sets_over_other_views_or_named_twice_are_refused(tiny_store: Any) -> None:
    with pytest.raises(BadInput, match="share their views"):
        views_of(tiny_store, "tiny-teacher", "tiny-gaps")
    with pytest.raises(BadInput, match="once"):
        views_of(tiny_store, "tiny-teacher", "tiny-teacher")


def test_rows_are_found_by_the_ids_of_images(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-teacher")
    ids = [reader.dataset().row(number).id for number in (17, 2, 17)]
    assert reader.rows_of(ids).tolist() == [34, 35, 4, 5, 34, 35]
    assert np.array_equal(reader.read(ids).patch, reader.read(np.array([34, 35, 4, 5, 34, 35])).patch)
    with pytest.raises(BadInput, match=r"no image 'elsewhere\.png'; its first is"):
        reader.read(["elsewhere.png"])


def test_the_notebook_lines_of_the_quick_start_run(tiny_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart = (Path(__file__).parents[3] / "docs" / "quickstart.md").read_text()
    code = quickstart.split("```python\n")[1].split("```")[0]
    for theirs, ours in (("efficientnet-lite0", "tiny-teacher"), ("keras-resnet50", "tiny-int8")):
        code = code.replace(theirs, ours)
    monkeypatch.chdir(Path(tiny_store.store.url.removeprefix("file://")).parent)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["patch"].shape[0] == 16
    assert len(found["samples"]) == 48


def test_indices_skip_failed_rows_without_an_array_of_all_rows(tiny_store: Any) -> None:
    data, reader = views_of(tiny_store, "tiny-gaps"), tiny_store.features("tiny-gaps")
    usable = np.setdiff1d(np.arange(reader.rows), reader.failed_rows())
    np.testing.assert_array_equal(data.rows_at(range(len(data))), usable)
    np.testing.assert_array_equal(data.rows_at([-1, -len(data)]), usable[[-1, 0]])
    assert all(array.size <= 2 for array in vars(data).values() if isinstance(array, np.ndarray))
    for outside in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match="46 samples"):
            data[outside]
