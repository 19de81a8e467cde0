"""Smaller models: statistics of weights, quantization, pruning and distillation."""
