"""A language model that sees patch tokens: projector, prompts, two stages of training, answers and their scores."""
