"""One spelling for URLs that mean the same, and paths that enter as they were written."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.urls import absolute, normalize_scheme


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("s3a://bucket/Store", "s3://bucket/Store"),
        ("s3n://bucket", "s3://bucket"),
        ("S3://Bucket/x", "s3://Bucket/x"),
        ("S3A://Bucket/x", "s3://Bucket/x"),
        ("gcs://bucket/x", "gs://bucket/x"),
        ("memory://Store", "memory://Store"),
        ("/Path/Of/Store", "/Path/Of/Store"),
    ],
)
def test_a_scheme_is_the_clients_and_the_rest_stays(given: str, known: str) -> None:
    assert normalize_scheme(given) == known


def test_a_path_without_the_folder_above_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in (tmp_path / "link" / "x", tmp_path / "nothing" / "there"):
        assert absolute(str(path)) == str(path)
    assert absolute("hub:OWNER/../NAME") == "hub:OWNER/../NAME"
    assert absolute("s3://bucket/../x") == "s3://bucket/../x"


def test_the_folder_above_is_resolved_such_that_the_place_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d1").mkdir()
    (tmp_path / "away" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("away/inner")
    monkeypatch.chdir(tmp_path / "d1")
    assert absolute("../tiny.toml") == str(tmp_path / "tiny.toml")
    assert absolute("../link/x") == str(tmp_path / "link" / "x"), "links stay as they are written"
    assert absolute("../link/../x") == str(tmp_path / "away" / "x"), "the folder above is that of where the link leads"
    assert absolute(f"{tmp_path}/nothing/../x") == str(tmp_path / "x")
