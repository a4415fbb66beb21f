"""Encoders: architectures, preprocessing, pixels to tokens."""
