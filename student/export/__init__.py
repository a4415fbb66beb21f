"""Students for deployment, and published ones taken in."""
