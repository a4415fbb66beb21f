"""What is trained: adapters, losses, schedules, the stream of images and targets, the trainer, evaluation."""
