"""Rows in Zarr shards: the format, the commit records, the ledgers."""
