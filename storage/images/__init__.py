"""Datasets: the index of images, building it, verifying it; pairs of images for evaluations."""
