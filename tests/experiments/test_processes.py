import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import files, processes
from experiments.errors import BadInput
from experiments.processes import Processes
from experiments.sweeps import sweep
from tests.experiments.sweeps.test_sweep import CONFIG, LINE, TRIALS

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys
from pathlib import Path
import jax
_, index, address, folder = sys.argv
from experiments import files
from experiments.processes import Processes, join
told = []
with join(Processes(address, 2, int(index))):
    from experiments.sweeps import sweep
    from tests.experiments.sweeps.test_sweep import CONFIG, LINE, TRIALS
    history = sweep.sweep(
        CONFIG, TRIALS, LINE, Path(folder), chunk=8, report=lambda *numbers: told.append(numbers)
    )
    print("told", told, len(jax.devices()), files.fingerprint(history))
"""


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(*arguments, devices=4, **variables):
    """Starts a process with some fake devices, compiled for as here, or else the bits differ."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_two_processes(folder):
    """What two processes of four devices each print in the end."""
    address = free_address()
    started = [start("-c", PROCESS, index, address, folder) for index in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
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


@pytest.mark.parametrize(
    ("together", "message"),
    [
        (Processes("localhost:12345", 2, 2), "--process is 2 of 2: give a number from 0 to 1"),
        (Processes(None, 2, 0), "--coordinator is None: 2 processes need HOST:PORT"),
        (Processes("localhost", 2, 0), "--coordinator is localhost: 2 processes need HOST:PORT"),
        (Processes("localhost:70000", 1, 0), "--coordinator is localhost:70000: 1 processes need"),
        (Processes(None, 0, 0), "--processes is 0: give 1 or more"),
        (Processes("auto", 2, 1), "--coordinator is auto: 2 processes need HOST:PORT"),
    ],
)
def test_processes_that_do_not_belong_together_are_told(together, message):
    with pytest.raises(BadInput, match=message), processes.join(together):
        raise AssertionError


def test_a_platform_that_is_not_there_is_told():
    with pytest.raises(BadInput, match=r"--platform tpu.*no such device"):
        processes.check_platform("tpu")


def test_a_cluster_that_is_not_there_is_told():
    ended = start("-m", "experiments", "run", "mnist", "--coordinator", "auto")
    _, told = ended.communicate(timeout=60)
    assert ended.returncode == 2
    assert told.startswith("error: --coordinator auto: JAX finds no cluster here")
    assert told.count("\n") == 1


def pair_of_connections():
    """The two ends of a connection over the loopback."""
    with socket.create_server(("localhost", 0)) as server:
        there = socket.create_connection(server.getsockname())
        return server.accept()[0], there


def test_a_connection_ends_this_process_unless_the_other_has_finished(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    for word, expected in ((processes.DONE, False), (b"", True)):
        here, there = pair_of_connections()
        connections = processes.Connections({3: here})
        there.sendall(word)
        there.close()
        assert ended.wait(1) is expected
        here.close()
        assert len(connections.others) == 1
    assert "error: process 3 has ended" in capsys.readouterr().err


def test_a_process_that_leaves_ends_the_others_and_not_itself(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it ended itself"))
    here, there = pair_of_connections()
    processes.Connections({1: here}).leave()
    assert there.recv(1) == b""
    there.close()
    here.close()


def start_pair(cache, *arguments):
    """Starts two processes of four devices each that run MNIST together."""
    shared = ("-m", "experiments", "run", "mnist", "--coordinator", free_address())
    return [
        start(*shared, "--processes", 2, "--process", index, *arguments, JAXCLIP_CACHE=str(cache))
        for index in range(2)
    ]


def own_lines(text):
    """The lines of a process without those of Gloo, which moves the numbers between CPUs."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


@pytest.mark.wide
def test_two_processes_run_as_one_end_together_and_lose_nothing(mnist_cache, tmp_path):
    options = ("--epochs", 3, "--batch-size", 2000, "--learning-rate", 0.3)
    whole = start(
        "-m", "experiments", "run", "mnist", *options, "--out", tmp_path / "whole",
        devices=8, JAXCLIP_CACHE=str(mnist_cache),
    )  # fmt: skip
    assert whole.communicate(timeout=300)
    assert whole.returncode == 0

    pair = start_pair(mnist_cache, *options, "--out", tmp_path / "pair")
    while not pair[0].stdout.readline().startswith("epoch 1/3"):
        assert pair[0].poll() is None
    pair[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, told = pair[0].communicate(timeout=60)
    pair[1].communicate()
    assert time.monotonic() - killed < 60
    assert pair[0].returncode == 2
    [line] = own_lines(told)
    assert line.startswith("error: process 1 has ended")

    pair = start_pair(mnist_cache, "--resume", tmp_path / "pair")
    outputs = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    first, second = (own_lines(out) for out, _ in outputs)
    assert first[0].startswith("epoch 2/3")
    assert second == []

    def losses(run):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert len(losses("whole")) == 90
    np.testing.assert_allclose(losses("pair"), losses("whole"), rtol=1e-5)
