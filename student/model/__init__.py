"""What is trained: recipe, student, losses, optimisers, ranks."""
