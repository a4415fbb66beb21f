"""Weights: files, hubs, conversions, and the published layouts of students."""
