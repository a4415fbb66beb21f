"""The training loop: trainer, learner, checkpoints, the run's folder."""
