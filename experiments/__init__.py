"""Experiments that evaluate jaxclip: one training loop, its tasks, runs, sweeps and studies."""
