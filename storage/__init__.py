"""Data at rest, numpy only: dataset index, views, codecs, statistics, the feature store."""
