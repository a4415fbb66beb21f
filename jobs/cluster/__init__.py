"""Batch scripts and manifests that run a command on a cluster."""
