"""Maintenance of a store: verify, repair, copy, prune, leases."""
