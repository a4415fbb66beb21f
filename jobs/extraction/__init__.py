"""Running teachers over a dataset: plan, workers, shards, statistics."""
