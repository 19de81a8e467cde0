"""One file a task: its data, model, loss and score."""
