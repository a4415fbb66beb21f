"""Choosing images by cached tokens: near duplicates, leaks between datasets, balanced subsets."""
