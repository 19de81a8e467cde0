"""Runs every benchmark, each in a process of its own: `make bench`."""

import subprocess
import sys

for name in ("clips", "epoch", "per_example", "sweep"):
    print(f"--- {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
