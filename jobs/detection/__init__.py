"""Object detection: a head of transformers on a student's patch tokens, and its AP."""
