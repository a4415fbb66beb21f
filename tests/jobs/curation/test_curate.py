"""Curation of real images by a real teacher's tokens: copies, leaks and balance, what is recorded, what is refused."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.curate import curate_features
from eupe_pipeline.jobs.curation.image_tokens import read_in_one_space, read_tokens
from eupe_pipeline.jobs.curation.options import CurateOptions
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.jobs.evaluation.pooled_features import pooled_features
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from PIL import Image

from ...conftest import extract, make_teacher

ORIGINALS, COPIES = 40, 12


def photo(number: int) -> Image.Image:
    """A smooth picture that no other number has."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
    return small.resize((64, 64), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image, shift: int) -> Image.Image:
    """The picture shifted by some pixels, after JPEG."""
    buffer = io.BytesIO()
    image.crop((shift, shift, 64, 64)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


class Planted(NamedTuple):
    """A store with `photos`, of which the last are copies of the first, and `test`, whose first two are copies of photos 20 and 21."""

    store: FeatureStore
    photos: str
    test: str


@pytest.fixture(scope="module")
def planted(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    root = tmp_path_factory.mktemp("planted")
    for name in ("photos", "test"):
        (root / name).mkdir()
    for n in range(ORIGINALS):
        photo(n).save(root / "photos" / f"a{n:03d}.png")
    for n in range(COPIES):
        recompressed(photo(n), n % 2).save(root / "photos" / f"b{n:03d}.png")
    for n in range(8):
        (recompressed(photo(20 + n), 1) if n < 2 else photo(500 + n)).save(root / "test" / f"t{n}.png")
    store, keys = FeatureStore.create(str(root / "store")), []
    for name in ("photos", "test"):
        dataset = build_index(store.objects, str(root / name), name)
        views = ViewSet.create(store.objects, dataset, ViewSpec(kind="center"), images_per_shard=8)
        keys.append(extract(store, tiny_store.teacher, views, "teacher", "fp16").key)
    return Planted(store, *keys)


@pytest.fixture
def copied(planted: Planted, tmp_path: Path) -> Planted:
    """The same, to be written to."""
    shutil.copytree(planted.store.url, tmp_path / "store")
    return planted._replace(store=FeatureStore.open(tmp_path / "store"))


def asked(made: Planted, **values: Any) -> CurateOptions:
    return CurateOptions(**{"key": made.photos, "store": made.store.url, "name": "clean", **values})


def oracle(made: Planted, threshold: float) -> tuple[list[int], list[int]]:
    """Images that are as like an earlier one, and those as like a test image, from tokens read one by one."""
    ours, theirs = made.store.features(made.photos), made.store.features(made.test)
    left = np.concatenate([ours.read_cls([n]) for n in range(ours.rows)]).astype(np.float64)
    raw = theirs.statistics.denormalize_cls(theirs.read_cls(range(theirs.rows)).astype(np.float32))
    right = ours.statistics.normalize_cls(raw).astype(np.float64)
    left, right = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (left, right))
    near = np.triu(left @ left.T >= threshold, 1)
    return np.flatnonzero(near.any(axis=0)).tolist(), np.flatnonzero((left @ right.T >= threshold).any(axis=1)).tolist()


def test_planted_copies_leave_and_their_originals_stay(copied: Planted) -> None:
    found = curate_features(asked(copied, near_duplicates=0.97))
    subset = copied.store.subset("clean")
    duplicates, _ = oracle(copied, 0.97)
    assert set(duplicates) >= set(range(ORIGINALS, ORIGINALS + COPIES))
    assert subset.left_out().tolist() == duplicates
    assert (found["subset"], found["kept"], found["duplicates_left_out"]) == (subset.key, subset.kept, len(duplicates))
    assert found["compared_by"] == "class token"
    assert ["a000.png", "b000.png"] in [one["images"] for one in found["groups"]["largest"]]
    assert all(one["least_cosine_with_first"] > 0.9 for one in found["groups"]["largest"])
    assert subset.identity["chosen_by"] == {
        "features": copied.store.features(copied.photos).digest, "token": "class token", "seed": 0, "near_duplicates": 0.97,
    }  # fmt: skip


def test_images_like_a_test_image_leave_and_are_named(copied: Planted) -> None:
    found = curate_features(asked(copied, near_duplicates=0.97, against="teacher@" + copied.test.partition("@")[2]))
    duplicates, leaks = oracle(copied, 0.97)
    assert set(leaks) >= {20, 21}
    named = {one["image"]: one["test_image"] for one in found["leaks"]["first"]}
    assert (named["a020.png"], named["a021.png"]) == ("t0.png", "t1.png")
    assert (found["leaks_left_out"], found["leaks"]["images"]) == (len(leaks), len(leaks))
    assert copied.store.subset("clean").left_out().tolist() == sorted({*duplicates, *leaks})
    alone = curate_features(asked(copied, against=copied.test, name="no-leaks"))
    assert alone["duplicates_left_out"] == 0
    assert alone["threshold_why"].startswith("auto: ")


def test_a_balanced_part_of_what_is_left_is_drawn_the_same_for_a_seed(copied: Planted) -> None:
    found = curate_features(asked(copied, near_duplicates=0.97, balance=10))
    assert found["kept"] == copied.store.subset("clean").kept == 10
    again = curate_features(asked(copied, near_duplicates=0.97, balance=10))
    assert again["subset"] == found["subset"]
    other = curate_features(asked(copied, near_duplicates=0.97, balance=10, seed=1))
    assert other["subset"] != found["subset"]
    assert set(oracle(copied, 0.97)[0]) <= set(copied.store.subset(found["subset"]).left_out().tolist())
    with pytest.raises(BadInput, match=r"--balance 53 asks for more images than are left, which are 52 of 52"):
        curate_features(asked(copied, balance=53))
    assert curate_features(asked(copied, balance=0.5, name="half"))["kept"] == 26


def test_a_dry_run_says_the_same_and_writes_nothing(planted: Planted) -> None:
    found = curate_features(asked(planted, near_duplicates=0.97, dry_run=True))
    assert found["subset"].startswith("clean@")
    unnamed = curate_features(asked(planted, near_duplicates=0.97, dry_run=True, name=None))
    assert (unnamed["kept"], "subset" in unnamed) == (found["kept"], False)
    assert planted.store.list_subsets() == []
    assert not (Path(planted.store.url) / "subsets").exists()


def test_other_teachers_and_the_same_images_are_refused(copied: Planted, tmp_path: Path) -> None:
    test = copied.store.dataset("test")
    views = ViewSet.create(copied.store.objects, test, ViewSpec(kind="center"), images_per_shard=8)
    stranger = extract(copied.store, make_teacher(tmp_path / "other", seed=2), views, "stranger", "fp16")
    with pytest.raises(CacheMismatch, match=r"stranger@\w+ was made by another teacher than teacher@\w+: .*weights_sha256"):
        curate_features(asked(copied, against="stranger"))
    with pytest.raises(BadInput, match="are both over photos@"):
        curate_features(asked(copied, against=copied.photos))
    assert stranger.complete
    assert copied.store.list_subsets() == []


def test_images_that_failed_leave_and_a_set_that_is_not_complete_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    seen: list[Any] = []
    found = curate_features(CurateOptions("tiny-gaps", store.url, "some", near_duplicates=1.0), seen.append)
    assert (found["without_tokens"], store.subset("some").left_out().tolist()) == (1, [5])
    assert any("is a random crop" in one.get("text", "") for one in seen)
    (tmp_path / "store" / "features" / store.features_key("tiny-gaps") / "commits" / "000001.json").unlink()
    with pytest.raises(BadInput, match="is not complete: 1 of 3 shards are missing"):
        curate_features(CurateOptions("tiny-gaps", store.url, "others", near_duplicates=1.0))


def test_the_first_view_of_each_image_is_compared(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-teacher")
    tokens = read_tokens(reader, lambda event: None)
    assert np.array_equal(tokens.values_ND, reader.read_cls(range(0, 48, 2)))
    assert np.array_equal(tokens.images_N, np.arange(24))


def test_pooled_sets_are_compared_after_their_own_moments_and_without_a_class_token_by_mean_patch_tokens(
    copied: Planted, tiny_store: Any
) -> None:
    readers = []
    for name in ("photos", "test"):
        model = open_model(str(tiny_store.teacher_run))
        readers.append(
            pooled_features(
                copied.store, copied.store.dataset(name), model, device="cpu", crop_fraction=1.0, batch_size=8, on_event=lambda event: None
            )
        )
    ours, theirs = read_in_one_space(readers[0], readers[1], lambda event: None)
    raw = readers[0].read_cls(range(readers[0].rows))
    np.testing.assert_allclose(ours.values_ND, (raw - raw.mean(0)) / np.maximum(raw.std(0), 1e-3), atol=1e-4)
    raw_test = readers[1].read_cls(range(8))
    np.testing.assert_allclose(theirs.values_ND, (raw_test - raw.mean(0)) / np.maximum(raw.std(0), 1e-3), atol=1e-4)
    found = curate_features(asked(copied, key=readers[0].key, near_duplicates=0.97, against=readers[1].key))
    assert {one["image"] for one in found["leaks"]["first"]} >= {"a020.png", "a021.png"}


def test_a_teacher_without_class_tokens_is_compared_by_mean_patch_tokens(tmp_path: Path) -> None:
    from ...storage.made_up_store import build

    made = build(tmp_path, codec="int8", cls_dim=None)
    found = curate_features(CurateOptions(made.features.key, made.store.url, "clean", auto=True))
    assert found["compared_by"] == "mean of patch tokens (the teacher has no class token)"
    tokens = read_tokens(made.features, lambda event: None)
    patch = made.features.decode(made.features.read(np.arange(0, 40, 2)))
    np.testing.assert_allclose(tokens.values_ND, patch.reshape(20, -1, patch.shape[-1]).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": None, "auto": True}, "a subset needs a name"),
        ({}, "say what to curate by"),
        ({"near_duplicates": 1.5}, "a cosine above 0 and at most 1"),
        ({"near_duplicates": float("nan")}, "a cosine above 0 and at most 1"),
        ({"near_duplicates": 0.9, "auto": True}, "not both"),
        ({"balance": 0}, "a number of images from 1, or a share"),
        ({"balance": 1.5}, "a number of images from 1, or a share"),
        ({"balance": float("inf")}, "a number of images from 1, or a share"),
        ({"balance": 5, "seed": -1}, "are 0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        CurateOptions(**{"key": "teacher", "store": "store", "name": "clean", **values})


def test_options_are_values() -> None:
    options = CurateOptions("teacher", "store", "clean", auto=True)
    assert Path(options.store).is_absolute()
    assert replace(options, auto=False, balance=0.5).finds is False
