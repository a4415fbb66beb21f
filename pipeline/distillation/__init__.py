"""From a folder of photos to a deployed student: everything that `distill` decides and does."""
