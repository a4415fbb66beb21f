"""Rows in Zarr shards: the format, commit records, ledgers, repair of a shard."""
