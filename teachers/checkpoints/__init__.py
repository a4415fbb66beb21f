"""Weights on disk and on hubs, in every published layout."""
