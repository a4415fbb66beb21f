"""One spelling for URLs that mean the same, and paths that enter as they were written."""

import pytest
from eupe_pipeline.storage.core.urls import normalize_scheme


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
