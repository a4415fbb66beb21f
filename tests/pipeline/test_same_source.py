"""Commands know a source however it is written: with and without a slash, as a path and as a URL."""

from pathlib import Path

import pytest
from eupe_pipeline.jobs.evaluation.labelled_features import open_data
from eupe_pipeline.pipeline.commands import actions
from eupe_pipeline.storage.store import FeatureStore

from ..storage.damaged_tars import picture


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "file://{0}", "file://{0}/", "photos", "./photos/", "{0}/../photos"])
def test_verify_and_evaluations_find_the_index_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(picture(1))
    monkeypatch.chdir(tmp_path)
    url, source = str(tmp_path / "store"), spelling.format(tmp_path / "photos")
    made = actions.index(source=f"file://{tmp_path}/photos/", store=url, name="pictures", max_bad_share=0.0, on_event=print)
    checked = actions.index(source=source, store=url, name="pictures", max_bad_share=0.0, verify=True, on_event=print)
    assert checked["unchanged"] is True
    store = FeatureStore.open(url)
    assert open_data(store, source).key == made["dataset"]
    assert store.list_datasets() == [made["dataset"]]
