"""Comparisons of clips: one file a question, and what the questions have in common."""
