"""The demonstration: its data, its recipe, its results."""
