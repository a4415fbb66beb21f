"""What an extraction or a training will cost."""
