"""Experiments with jaxclip: one training loop, its tasks, and what a run leaves behind."""
