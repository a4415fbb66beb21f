"""`features ls`, `verify` and `prune` know recorded subsets, and a name that two kinds of things have is no choice."""

from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.pipeline.reports.catalog import list_store, prune_features, verify_features
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.subsets import ImageSubset

from ...storage.made_up_store import build


def test_subsets_are_listed_verified_and_pruned_by_name(tmp_path: Path) -> None:
    made = build(tmp_path)
    url = made.store.url
    clean, namesake = (ImageSubset.create(made.store.objects, name, made.dataset, np.arange(20) > 4, {}) for name in ("clean", "made-up"))
    row = {"dataset": made.dataset.key, "kept": 15, "images": 20}
    assert list_store(store=url)["subsets"] == {clean.key: row, namesake.key: row}
    assert verify_features(store=url)["findings"] == []
    with pytest.raises(BadInput, match=f"is the name of several things in .*{made.features.key}, {namesake.key}"):
        prune_features(key="made-up", store=url, dry_run=True)
    assert prune_features(key="clean", store=url, dry_run=False) == {"key": clean.key, "dry_run": False, "objects": 2}
    assert prune_features(key=namesake.key, store=url, dry_run=False)["key"] == namesake.key
    with pytest.raises(BadInput, match=r"unknown features in .*'clean'"):
        prune_features(key="clean", store=url, dry_run=False)
    assert prune_features(key="made-up", store=url, dry_run=True)["key"] == made.features.key
