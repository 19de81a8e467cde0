"""The training of a task: its numbers, its code and its data."""
