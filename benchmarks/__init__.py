"""Against the peers: each file is one question, run by `python -m benchmarks.NAME`."""
