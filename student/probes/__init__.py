"""Measures of features: kNN, linear probe, dense heads, keypoints."""
