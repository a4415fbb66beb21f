"""Keeping a store whole: verify, repair, copy, prune, leases."""
