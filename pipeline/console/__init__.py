"""What a terminal shows: progress, results as text, the doctor."""
