"""Finding things by name, refusing what is not a store, and freezing statistics once."""

from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.store import FeatureStore

from .made_up_store import Made, plan, with_features


def test_a_store_is_made_once_and_opened_again(tmp_path: Path) -> None:
    made = FeatureStore.create(str(tmp_path / "deep/store"))
    assert FeatureStore.create(str(tmp_path / "deep/store")).url == made.url
    assert FeatureStore.open(f"file://{tmp_path}/deep/store").url == made.url
    assert made.list_datasets() == made.list_view_sets() == made.list_features() == []


def test_what_is_not_a_store_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is not a feature store.*eupe-pipeline index"):
        FeatureStore.open(str(tmp_path / "none"))
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(BadInput, match=r"is not empty \(it holds thesis\.tex\)"):
        FeatureStore.create(str(tmp_path))
    for function in (FeatureStore.open, FeatureStore.create):
        with pytest.raises(BadInput, match="is a file"):
            function(str(tmp_path / "thesis.tex"))


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    FeatureStore.create(str(tmp_path / "s"))
    (tmp_path / "s/eupe-store.json").write_text('{"format":2,"kind":"eupe-pipeline store"}')
    with pytest.raises(BadInput, match="format 2, this version reads format 1"):
        FeatureStore.open(str(tmp_path / "s"))


def test_a_name_is_enough_while_it_is_the_only_one(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert made.store.features("made-up").key == made.features.key
    assert made.store.features(made.features.key[:-6]).key == made.features.key
    other = with_features(made, "fp16")
    with pytest.raises(BadInput, match="several features") as raised:
        made.store.features("made-up")
    assert made.features.key in str(raised.value)
    assert other.features.key in str(raised.value)
    with pytest.raises(BadInput, match=r"did you mean 'made-up@.*Known: made-up@"):
        made.store.features("made-upp")
    with pytest.raises(BadInput, match="none yet"):
        FeatureStore.create(str(tmp_path / "new")).dataset("x")


@pytest.mark.parametrize("name", ["a/b", "../up", "", "a@b", "x\n", ".hidden"])
def test_a_feature_set_has_a_name_that_a_folder_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="name of a feature set"):
        with_features(plan(tmp_path), "int8", name=name)


def test_features_bring_their_views_and_dataset(pristine: Made) -> None:
    found = FeatureStore.open(pristine.store.url).features("made-up")
    assert found.views.key == pristine.views.key
    assert found.views.dataset.key == pristine.dataset.key
    assert found.complete
    assert found.stored_bytes() == sum(
        path.stat().st_size
        for name in ("cls", "patch", "patch_scale")
        for path in (pristine.folder / "features" / found.key / name).glob("c.*")
    )


@pytest.mark.parametrize("kind", ["datasets", "views"])
def test_features_whose_views_or_dataset_are_gone_say_so(tmp_path: Path, kind: str) -> None:
    made = plan(tmp_path)
    (made.folder / kind).rename(made.folder / "aside")
    with pytest.raises(CacheDamaged, match=r"has no (dataset|views) @"):
        made.store.features("made-up")


def statistics(value: float) -> Statistics:
    array = np.full(4, value, np.float32)
    return Statistics(array, array, array, array, 10)


def test_the_first_writer_of_statistics_wins(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "s"))
    asked = {"teacher": {"weights": "1b"}, "views": 100}
    assert store.kept_statistics("t", asked) is None
    assert store.keep_statistics("t", asked, statistics(1)).digest == statistics(1).digest
    assert store.keep_statistics("t", asked, statistics(2)).digest == statistics(1).digest
    assert store.kept_statistics("t", {**asked, "views": 200}) is None


def test_another_teacher_weights_codec_or_views_is_another_set(tmp_path: Path) -> None:
    made = plan(tmp_path)
    keys = {with_features(made, codec).features.key for codec in ("int8", "fp16", "fp32", "int4")}
    keys |= {with_features(made, "int8", cls_dim=None).features.key}
    assert len(keys) == 5
    assert with_features(made, "int8").features.key == made.features.key
