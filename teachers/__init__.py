"""What is frozen: encoders, teachers by name, their weights and preprocessing."""
