"""Objects (bytes under keys) in local folders and S3: atomic writes, parallel reads, a local cache."""
