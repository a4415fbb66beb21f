"""Bytes under keys: local files and S3, written atomically, read in parallel, cached."""
