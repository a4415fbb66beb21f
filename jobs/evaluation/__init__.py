"""Evaluations of a model on a dataset, one file each."""
