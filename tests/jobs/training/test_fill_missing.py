"""A run that fills the cache: the same sets, records and losses as an extraction before it, gaps only, and only by the right teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.fill_missing import fill_missing
from eupe_pipeline.pipeline.commands.main import cli
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec

from ...conftest import make_teacher, write_images


def files(store: FeatureStore, key: str) -> dict[str, bytes]:
    """Objects and records of a set, by path."""
    root = Path(store.url) / "features" / key
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_gaps_are_filled_as_the_extraction_would_have_filled_them(photos: Any) -> None:
    store, options, _ = photos
    key = extract_features(replace(options, batch_size=32))["features"]["teacher"]
    before = files(store, key)
    store.features(key).group.discard(1)
    seen: list[dict[str, Any]] = []
    done = fill_missing(store, ["teacher"], ["photos"], teachers=[options.teachers[0].name], on_event=seen.append)
    assert done == {"computed_shards": {"photos": 1}}
    assert files(store, key) == before
    assert [event["done"] for event in seen if event["event"] == "progress"] == [48]
    assert fill_missing(store, ["teacher"], ["photos"], teachers=[options.teachers[0].name])["computed_shards"] == {"photos": 0}


def test_sets_that_do_not_exist_are_begun_as_extract_features_begins_them(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    fill_missing(store, ["teacher"], ["photos"], teachers=[options.teachers[0].name], views_per_image=2)
    other = FeatureStore.create(str(tmp_path / "other"))
    build_index(other.objects, store.dataset("photos").source, "photos")
    plain = ExtractOptions(store.url, "photos", (TeacherRequest(options.teachers[0].name),), ViewSpec(views_per_image=2), workers=0)
    key = extract_features(replace(plain, store=other.url))["features"]["teacher"]
    assert store.list_features() == [key]
    assert files(store, key) == files(other, key)


def test_a_new_set_joins_the_views_of_the_runs_other_sets_and_a_mixture_shares_statistics(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    make_teacher(tmp_path / "second", seed=2)
    write_images(tmp_path / "more", 5)
    build_index(store.objects, str(tmp_path / "more"), "more")
    extract_features(options)
    teachers = [options.teachers[0].name, str(tmp_path / "second")]
    done = fill_missing(store, ["teacher", "second"], ["photos", "more"], teachers=teachers, views_per_image=3)
    assert done["computed_shards"] == {"photos": 3, "more": 2}
    by_name: dict[str, list[Any]] = {"teacher": [], "second": []}
    for key in store.list_features():
        by_name[key.split("@")[0]].append(store.features(key))
    for readers in by_name.values():
        assert len({one.statistics.digest for one in readers}) == 1
        assert {one.views.dataset.name for one in readers} == {"photos", "more"}
    over_photos = [one for readers in by_name.values() for one in readers if one.views.dataset.name == "photos"]
    assert len({one.views.digest for one in over_photos}) == 1


def test_another_teacher_cannot_fill_a_set(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    key = extract_features(options)["features"]["teacher"]
    store.features(key).group.discard(0)
    make_teacher(tmp_path / "second", seed=2)
    with pytest.raises(CacheMismatch, match=r"is not the teacher that made .*weights_sha256"):
        fill_missing(store, ["teacher"], ["photos"], teachers=[str(tmp_path / "second")])
    with pytest.raises(BadInput, match="1 --features need 1 --teacher"):
        fill_missing(store, ["teacher"], ["photos"], teachers=["a", "b"])


def test_a_set_that_would_have_another_name_is_refused(photos: Any) -> None:
    store, options, _ = photos
    with pytest.raises(BadInput, match="has its teacher's name, teacher"):
        fill_missing(store, ["mine"], ["photos"], teachers=[options.teachers[0].name])


def test_the_command_extracts_and_trains_in_one_go(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    words = ["train", "--stage", "2", "--store", store.url, "--data", "photos", "--features", "teacher", "--out", str(tmp_path / "run")]
    small = ["device=cpu", "precision=fp32", "student.architecture=vit-mini", "student.sizes_px=[24]", "adapter.width=32", "run.steps=3"]
    words += [part for one in [*small, "run.batch_size=6"] for part in ("--set", one)]
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, BadInput)
    words += ["--on-miss", "compute", "--teacher", options.teachers[0].name, "--views", "2"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert store.features("teacher").views.views_per_image == 2
    assert store.features("teacher").complete
    with pytest.raises(BadInput, match="give one of them"):
        CliRunner().invoke(cli, [*words, "--follow"], catch_exceptions=False)
