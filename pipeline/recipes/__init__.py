"""The recipes that come with the package, and their typed loading."""
