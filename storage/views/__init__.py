"""Recorded views of images: how they are drawn, and where they are kept."""
