"""Encoders: architectures, preprocessing, from pixels to tokens."""
