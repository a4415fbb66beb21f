"""Commands know a source however it is written: with and without a slash, as a path and as a URL."""

from pathlib import Path

import pytest
from eupe_pipeline.jobs.evaluation.labelled_features import open_data
from eupe_pipeline.storage.index import IndexOptions, index
from eupe_pipeline.storage.store import FeatureStore

from ..storage.damaged_tars import picture


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "file://{0}", "file://{0}/", "photos", "./photos/", "{0}/../photos"])
def test_verify_and_evaluations_find_the_index_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(picture(1))
    monkeypatch.chdir(tmp_path)
    url, source = str(tmp_path / "store"), spelling.format(tmp_path / "photos")
    made = index(IndexOptions(f"file://{tmp_path}/photos/", url, "pictures", 0.0))
    checked = index(IndexOptions(source, url, "pictures", 0.0, verify=True))
    assert checked["unchanged"] is True
    store = FeatureStore.open(url)
    assert open_data(store, source).key == made["dataset"]
    assert store.list_datasets() == [made["dataset"]]
