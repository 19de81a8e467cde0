"""Processes joined by `jax.distributed`, all of them running the same command.

The first one reads and writes the files, and broadcasts what it reads. One process alone is the
first one, and nothing is sent.

A collective waits for ever for a process that is gone. So each process holds a connection to the
first one, which the operating system closes when either ends; then the other ends too.
"""

import atexit
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from experiments.errors import BadInput, in_one_line

AUTO = "auto"
DONE = b"."  # sent by a process that has finished its work
# A host that is gone without a word is noticed after 10 + 3 * 5 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
GRACE = 10  # seconds, in which the connection to a process that failed a collective is closed


class Processes(NamedTuple):
    """The processes that work together, as the user names them.

    Attributes:
        coordinator: HOST:PORT of the first one, `"auto"`, or None where this one is alone.
        total: how many there are.
        number: that of this one, from 0.
    """

    coordinator: str | None = None
    total: int = 1
    number: int = 0


ALONE = Processes()


@contextmanager
def join(processes: Processes = ALONE, platform: str | None = None) -> Iterator[None]:
    """Joins this process to the others, if there are any, and ends it when one of them is gone.

    Args:
        processes: which ones there are. With `"auto"`, JAX asks the cluster: Slurm, Open MPI,
            Kubernetes or Cloud TPU.
        platform: where to compute; None is JAX's choice.

    Raises:
        BadInput: the processes do not belong together, or there is no such platform.
    """
    check(processes)
    if platform is not None:
        jax.config.update("jax_platforms", platform)
    initialize(processes)
    check_platform(platform)
    connections = Connections(connect(processes))
    try:
        yield
        connections.finish()
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and connections.others:
            time.sleep(GRACE)  # another process may be gone, which `watch` reports
        connections.leave()
        raise


def check(processes: Processes) -> None:
    """Raises `BadInput` where the options of several processes do not belong together."""
    coordinator, total, number = processes
    if total < 1:
        raise BadInput(f"--processes is {total}: give 1 or more")
    if coordinator in (None, AUTO) and (total, number) == (1, 0):
        return
    if coordinator is None or not is_address(coordinator):
        raise BadInput(
            f"--coordinator is {coordinator}: {total} processes need HOST:PORT of the first one, "
            f"such as localhost:12345"
        )
    if not 0 <= number < total:
        raise BadInput(f"--process is {number} of {total}: give a number from 0 to {total - 1}")


def is_address(coordinator: str) -> bool:
    """Returns whether a text is HOST:PORT."""
    found = re.fullmatch(r".+:(\d{1,5})", coordinator)
    return found is not None and 0 < int(found[1]) < 2**16


def initialize(processes: Processes) -> None:
    """Starts `jax.distributed`, unless this process is alone."""
    if processes.coordinator is None:
        return
    if processes.coordinator != AUTO:
        jax.distributed.initialize(*processes)
        return
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise BadInput(
            f"--coordinator auto: JAX finds no cluster here ({in_one_line(error)}): give HOST:PORT "
            f"of the first process, and --processes and --process"
        ) from error


def check_platform(platform: str | None) -> None:
    """Raises `BadInput` where JAX has no devices of a platform."""
    try:
        jax.devices(platform)
    except RuntimeError as error:
        raise BadInput(
            f"--platform {platform}: JAX finds no such device here; install its plugin, such as "
            f"'jax[cuda13]' for an NVIDIA GPU, or choose --platform cpu ({in_one_line(error)})"
        ) from error


def connect(processes: Processes) -> dict[int, socket.socket]:
    """Returns the connections of the first process to all others, or of another to the first."""
    if jax.process_count() == 1:
        return {}
    with socket.create_server(("", 0)) as server:
        auto = processes.coordinator == AUTO
        host = socket.gethostname() if auto else str(processes.coordinator).rpartition(":")[0]
        address = of_first(lambda: [host, server.getsockname()[1]])
        if is_first():
            accepted = [server.accept()[0] for _ in range(1, jax.process_count())]
            return {int(connection.recv(16)): connection for connection in accepted}
    connection = socket.create_connection(address, timeout=60)
    connection.settimeout(None)
    connection.sendall(str(jax.process_index()).encode())
    return {0: connection}


class Connections:
    """Connections to other processes, each watched by a thread.

    Attributes:
        others: the connections, by the number of the other process.
    """

    def __init__(self, others: Mapping[int, socket.socket]):
        self.others = others
        self.left = threading.Event()
        for index, connection in others.items():
            keep_alive(connection)
            threading.Thread(target=self.watch, args=(index, connection), daemon=True).start()

    def watch(self, index: int, connection: socket.socket) -> None:
        """Ends this process when another one is gone before it has finished its work."""
        try:
            word = connection.recv(1)
        except OSError:
            word = b""
        if word == DONE or self.left.is_set():
            return
        sys.stdout.flush()
        print(
            f"error: process {index} has ended, and its own output says why: start all processes "
            f"again, with --resume and the folder of a run that has begun",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # the main thread may wait for a collective that never comes

    def finish(self) -> None:
        """Tells the other processes that this one has finished its work."""
        for connection in self.others.values():
            connection.sendall(DONE)

    def leave(self) -> None:
        """Ends the other processes, and does not wait for them when this one exits."""
        self.left.set()
        for connection in self.others.values():
            connection.shutdown(socket.SHUT_RDWR)
        atexit.unregister(jax.distributed.shutdown)


def keep_alive(connection: socket.socket) -> None:
    """Has the operating system find out whether the other host is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every operating system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_first() -> bool:
    """Returns whether this is the process that reads and writes."""
    return jax.process_index() == 0


def of_first(function: Callable[[], Any]) -> Any:
    """Returns what a function returns in the first process, a JSON value; no other calls it."""
    if jax.process_count() == 1:
        return function()
    text = np.frombuffer(json.dumps(function() if is_first() else None).encode(), np.uint8)
    size = int(broadcast(np.array(len(text))))
    text = broadcast(text if is_first() else np.zeros(size, np.uint8))
    return json.loads(text.tobytes())


def broadcast(tree: Any) -> Any:
    """Returns the arrays of the first process; all processes pass arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree)


def gather(tree: Any) -> Any:
    """Returns arrays sharded over the devices of all processes as whole arrays of the host."""
    return multihost_utils.process_allgather(tree, tiled=True)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Returns arrays of the host, which every process has whole, sharded over all devices.

    Each process sends to its own devices their shares, and nothing else.
    """

    def place(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)
