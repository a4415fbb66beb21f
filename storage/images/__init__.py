"""Datasets: the index of images, its making and its check."""
