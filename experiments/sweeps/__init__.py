"""Many trainings of one structure, side by side."""
