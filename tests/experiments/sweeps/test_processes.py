import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import files
from experiments.sweeps import sweep
from tests.experiments.sweeps.test_sweep import CONFIG, LINE, TRIALS

ROOT = Path(__file__).parents[3]
PROCESS = """
import sys
from pathlib import Path
import jax
_, index, address, folder = sys.argv
jax.distributed.initialize(address, 2, int(index))
from experiments import files
from experiments.sweeps import sweep
from tests.experiments.sweeps.test_sweep import CONFIG, LINE, TRIALS
told = []
history = sweep.sweep(
    CONFIG, TRIALS, LINE, Path(folder), chunk=8, report=lambda *numbers: told.append(numbers)
)
print("told", told, len(jax.devices()), files.fingerprint(history))
"""


def in_two_processes(folder):
    """What two processes of four devices each print in the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # Compiled as here, or else the bits differ.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = os.environ | {"XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), address, str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [line for output in outputs for line in output.splitlines() if line.startswith("told")]


@pytest.mark.slow
def test_two_processes_sweep_together_and_do_only_what_is_missing(tmp_path):
    alone = files.fingerprint(sweep.sweep(CONFIG, TRIALS, LINE, tmp_path / "alone", chunk=8))
    folder = tmp_path / "together"
    whole = f"told [(0, 18), (8, 18), (16, 18), (18, 18)] 8 {alone}"
    assert in_two_processes(folder) == [whole, whole]
    (folder / "trials-8.npz").unlink()
    rest = f"told [(10, 18), (18, 18)] 8 {alone}"
    assert in_two_processes(folder) == [rest, rest]
