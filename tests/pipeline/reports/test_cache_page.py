"""`features show --html` writes a page that says what a cache holds, and what it does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.cache_page import channel_list, counted
from eupe_pipeline.pipeline.reports.charts import Axes
from eupe_pipeline.storage.features.features import FeatureReader

from .test_report import Page


def test_the_page_holds_views_tokens_health_and_identity(tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cache.html"
    assert main(["features", "show", "tiny-gaps", "--store", tiny_store.store.url, "--html", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["page"] == str(out)
    assert found["rows"] == 48
    html = out.read_text()
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert [value for name, value in page.attributes if name == "id"] == ["views", "tokens", "store", "identity"]
    assert html.count('class="crop v0"') == html.count('class="crop v1"') == 3
    for words in ("Patch tokens", "Class token", "median norm", "1 images failed", "teacher. weights_sha256", "mean and std of 48 views"):
        assert words in page.text, words


def test_a_set_without_a_shard_says_how_to_go_on(small_store: tuple[str, FeatureReader], tmp_path: Path) -> None:
    url, reader = small_store
    for record in (Path(url) / "features" / reader.key / "commits").iterdir():
        record.unlink()
    assert main(["features", "show", reader.key, "--store", url, "--html", str(tmp_path / "cache.html")]) == 0
    text = Page((tmp_path / "cache.html").read_text()).text
    assert "No shard is committed yet" in text
    assert "0 % of the shards are there" in text
    assert "Patch tokens" not in text


def test_dead_channels_are_counted_and_the_first_are_named() -> None:
    assert channel_list([]) == ""
    assert channel_list([3, 17]) == "2: 3, 17"
    assert channel_list(range(1000)).endswith("22, 23 and 976 more")


def test_an_outlier_does_not_flatten_a_histogram_and_equal_values_have_one() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 5000), [1e9]])
    assert counted(values, Axes("t")).count("<rect") == 40
    assert ">2</span>" in counted(values, Axes("t"))
    assert "<title>" in counted(np.ones(5), Axes("t"))
