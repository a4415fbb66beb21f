"""Training runs: checks before the start, ranks, filling what is missing."""
