"""Less than a teacher's grid in the store: resampling that commutes with the normalisation, sampling that keeps tokens to the bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.extraction.stored_tokens import resampled, stored_tokens, weights
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.losses import upsample
from eupe_pipeline.teachers.encoders.tokens import Tokens

RATIOS = [(32, 16), (37, 16), (28, 16), (20, 16), (17, 16), (14, 7), (5, 1)]


@pytest.mark.parametrize(("large", "small"), RATIOS)
def test_weights_of_each_stored_token_add_up_to_one(large: int, small: int) -> None:
    torch.testing.assert_close(weights(large, small, torch.device("cpu")).sum(1), torch.ones(small), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("large", "small"), RATIOS)
def test_no_grid_of_that_size_comes_nearer_when_the_loss_upsamples_it(large: int, small: int) -> None:
    """At the least squares the error has no part that another grid of that size could still explain."""
    tokens = torch.randn(2, large, large, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = resampled(tokens.float(), (small, small)).double().requires_grad_()
    error = (upsample(grid, large, large) - tokens).square().sum()
    (slope,) = torch.autograd.grad(error, grid)
    assert slope.abs().max() < 1e-4 * tokens.abs().sum().sqrt()


def test_an_axis_that_stays_is_left_as_it_is() -> None:
    tokens = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(resampled(tokens, (4, 6)), tokens, rtol=1e-5, atol=1e-6)
    half = resampled(tokens, (4, 3))
    assert half.shape == (2, 4, 3, 5)
    assert half.is_contiguous()


@pytest.mark.parametrize("method", ["mean and std", "PHI-S"])
def test_resampling_before_the_normalisation_is_resampling_after_it(method: str) -> None:
    raw = np.random.default_rng(0).normal(3, np.linspace(0.1, 5, 12), size=(6, 8, 8, 12)).astype(np.float32)
    if method == "PHI-S":
        covariance = Covariance(12)
        covariance.update(raw)
        statistics = Statistics.from_covariances(None, covariance, 6)
    else:
        moments = Moments(12)
        moments.update(raw)
        statistics = Statistics.from_moments(None, moments, 6)
    before = statistics.normalize_patch(resampled(torch.from_numpy(raw), (5, 4)).numpy())
    after = resampled(torch.from_numpy(statistics.normalize_patch(raw)), (5, 4)).numpy()
    np.testing.assert_allclose(before, after, atol=2e-5)


def test_places_are_of_the_smaller_grid_where_there_is_one() -> None:
    tokens = Tokens(torch.randn(2, 3), torch.randn(2, 4, 4, 5))
    places = np.array([[0, 3], [1, 2]], np.uint16)
    found = stored_tokens(tokens, FeatureLayout(3, 5, (2, 2), "fp32", 2, (4, 4)), places)
    whole = resampled(tokens.patch_BHWD, (2, 2))
    assert torch.equal(found.patch[1], torch.stack([whole[1, 0, 1], whole[1, 1, 0]]))
    assert found.cls_BD is tokens.cls_BD


@pytest.fixture
def large(photos: Any) -> tuple[FeatureStore, ExtractOptions]:
    """A store, and an extraction of a teacher with a grid of 4×4 in fp32."""
    store, options, _ = photos
    return store, replace(options, teachers=(replace(options.teachers[0], size_px=32),))


def features(store: FeatureStore, options: ExtractOptions) -> FeatureReader:
    return store.features(extract_features(options)["features"]["teacher"])


def everything(reader: FeatureReader) -> np.ndarray[Any, np.dtype[np.float32]]:
    return reader.decode(reader.read(np.arange(reader.rows)))


def test_sampled_tokens_are_the_whole_set_s_to_the_bit(large: Any) -> None:
    store, options = large
    whole, some = features(store, options), features(store, replace(options, tokens_per_view=5))
    found = some.read(np.arange(48))
    assert found.position is not None
    assert found.patch.shape == (48, 5, 48)
    np.testing.assert_array_equal(found.patch, take_positions(everything(whole), found.position))
    assert some.statistics.digest == whole.statistics.digest
    assert some.identity["layout"]["tokens_per_view"] == 5
    assert some.key != whole.key


def test_a_smaller_grid_is_the_whole_one_resampled_with_the_original_s_statistics(large: Any) -> None:
    store, options = large
    whole, small = features(store, options), features(store, replace(options, grid=(3, 2)))
    wanted = resampled(torch.from_numpy(everything(whole)), (3, 2)).numpy()
    np.testing.assert_allclose(everything(small), wanted, atol=1e-4)
    assert small.statistics.digest == whole.statistics.digest
    assert (small.grid, small.identity["layout"]["resampled_from"]) == ((3, 2), [4, 4])
    assert small.identity["teacher"] == whole.identity["teacher"]


def test_the_teacher_s_own_grid_is_no_other_layout(large: Any) -> None:
    store, options = large
    assert features(store, replace(options, grid=(4, 4))).key == features(store, options).key


def test_teachers_of_one_grid_keep_the_same_cells_and_a_larger_one_joins_them(large: Any, tmp_path: Path) -> None:
    store, options = large
    shutil.copytree(options.teachers[0].name, tmp_path / "second")
    both = replace(options, teachers=(*options.teachers, TeacherRequest(str(tmp_path / "second"), size_px=24)), grid=(3, 3))
    found = extract_features(replace(both, store=store.url, tokens_per_view=4))["features"]
    positions = [store.features(key).read(np.arange(48)).position for key in found.values()]
    assert positions[0] is not None
    np.testing.assert_array_equal(*positions)
    assert [store.features(key).layout.resampled_from for key in found.values()] == [(4, 4), None]


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("less", [{"tokens_per_view": 6}, {"grid": (2, 3)}, {"grid": (3, 3), "tokens_per_view": 4}])
def test_fidelity_compares_what_is_stored_with_the_same_of_a_fresh_forward(large: Any, codec: str, less: dict[str, Any]) -> None:
    store, options = large
    reader = features(store, replace(options, codec=codec, **less))
    found = fidelity(FidelityOptions(store.url, reader.key, teacher=TeacherRequest(options.teachers[0].name), sample=12))
    assert found["patch"]["min"] > {"fp32": 1 - 1e-6, "fp16": 1 - 1e-5, "int8": 0.9998}[codec]


def test_repair_makes_the_same_bytes_again(large: Any) -> None:
    store, options = large
    reader = features(store, replace(options, codec="int8", grid=(3, 3), tokens_per_view=4))
    folder = Path(store.url) / "features" / reader.key
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    victim = next((folder / "patch_position").glob("c.1.*"))
    victim.write_bytes(bytes(len(before[victim])))
    assert repair_features(RepairOptions(store.url, reader.key, teacher=TeacherRequest(options.teachers[0].name)))["repaired"] == [1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_dry_run_tells_the_bytes_of_what_will_be_stored(large: Any) -> None:
    store, options = large
    less = replace(options, codec="int8", grid=(3, 3), tokens_per_view=4)
    expected = extract_features(replace(less, store=store.url, dry_run=True))["bytes_expected"]["teacher"]
    assert expected == 48 * (4 * 48 + 4 * 2 + 4 * 2 + 2 * 48)
    assert expected < extract_features(replace(less, store=store.url))["bytes_committed"] < 1.1 * expected + 4096


@pytest.mark.parametrize(("bad", "text"), [
    ({"grid": (5, 5)}, r"teacher teacher: a grid of 4×4 can be stored resampled to a smaller one, not to 5×5; give at most 4 rows"),
    ({"grid": (2, 8)}, r"not to 2×8"),
    ({"tokens_per_view": 17}, r"teacher teacher: 17 tokens a view of a grid of 4×4: give 1 to 16"),
    ({"grid": (2, 2), "tokens_per_view": 5}, r"give 1 to 4"),
])  # fmt: skip
def test_what_cannot_be_stored_is_refused_before_any_work(large: Any, bad: dict[str, Any], text: str) -> None:
    store, options = large
    for dry_run in (True, False):
        with pytest.raises(BadInput, match=text):
            extract_features(replace(options, dry_run=dry_run, **bad))
    assert store.list_features() == store.list_view_sets() == []


def test_the_command_line_stores_less_and_says_so(large: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store, options = large
    words = ["--store", store.url, "--data", "photos", "--views", "2", "--shard-images", "8", "--grid", "3x3", "--tokens-per-view", "4"]
    words += ["--teacher", options.teachers[0].name, "--teacher-size", f"{options.teachers[0].name}=32", "--statistics-batches", "2"]
    assert main(["extract-features", *words, "--workers", "0", "--json"]) == 0
    key = json.loads(capsys.readouterr().out.splitlines()[-1])["features"]["teacher"]
    assert main(["features", "show", key, "--store", store.url]) == 0
    shown = capsys.readouterr().out
    assert all(
        line in shown for line in ("grid: 3×3", "resampled_from: 4×4", "tokens_per_view: 4", "bytes_of_a_view: 304", "complete: yes")
    )
    assert main(["features", "fidelity", key, "--store", store.url, "--teacher", options.teachers[0].name, "--sample", "9"]) == 0
    assert main(["features", "verify", key, "--store", store.url]) == 0
