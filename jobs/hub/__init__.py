"""Push exports, runs and feature sets to the Hugging Face hub, and pull them from there."""
