"""Many trainings of one structure, side by side: one compiled call a chunk of them."""

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import files, processes
from experiments.errors import BadInput
from experiments.sweeps.memory import peak
from experiments.training import train
from experiments.training.config import Config, Trial
from experiments.training.data import Data
from experiments.training.train import History

Report = Callable[[int, int], None]
AXIS = "trials"
SECONDS = "seconds"  # of each trial, beside its history
FEW = 8  # trials, for which XLA plans as it does for more
REMEDY = "delete it, and its trainings are repeated"
FAR_OFF = 3  # the peak of a trace is off by less


def sweep(
    config: Config,
    trials: Trial,
    data: Data,
    folder: Path,
    *,
    chunk: int = 64,
    memory: int | None = None,
    report: Report = lambda done, total: None,
) -> History:
    """Returns the history of every trial, as arrays of the host with a leading axis of trials.

    It is `timed_sweep` without the times, in chunks no larger than the trials.
    """
    check_chunk_size(chunk)
    chunk = min(chunk, len(trials.seed))
    options: Any = {"chunk": chunk, "memory": memory, "report": report}
    return timed_sweep(config, trials, data, folder, **options)[0]


def timed_sweep(
    config: Config,
    trials: Trial,
    data: Data,
    folder: Path,
    *,
    chunk: int = 64,
    memory: int | None = None,
    report: Report = lambda done, total: None,
) -> tuple[History, np.ndarray]:
    """Returns the history of every trial, and its share f32[trials] of the seconds of its chunk.

    The trials of a chunk are sharded over all devices of all processes. Every finished chunk is
    kept in the folder, and a sweep that was stopped trains only the missing ones.

    Args:
        config: the code of all of them; it is compiled once.
        trials: their numbers, each an array [trials].
        data: the examples.
        folder: where the chunks are kept; it is made, or holds an earlier part of this sweep.
        chunk: how many trials are in one call; rounded up to a multiple of the devices. Sweeps of
            one config and one chunk, of however many trials, are one compilation.
        memory: bytes that a chunk may take; by default the free memory.
        report: called with the number of trials done and their total, at first and every chunk.

    Raises:
        BadInput: the chunk cannot fit, another process writes into the folder, or it holds
            something other than a part of this sweep.
    """
    check_chunk_size(chunk)
    devices = len(jax.devices())
    size = -(-chunk // devices) * devices
    check_memory(config, trials, data, size, free_memory() if memory is None else memory)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    shared = processes.place(data, NamedSharding(mesh, PartitionSpec()))
    lowered = parallel_training(config, mesh).lower(select_trials(trials, 0, size, mesh), shared)
    wanted = describe(lowered.as_text(), trials, data, size)
    claim = files.claim(folder / "sweep.json", wanted)
    with claim if processes.is_first() else nullcontext():
        return sweep_chunks(lowered, trials, shared, folder, size, mesh, report)


def sweep_chunks(
    lowered: jax.stages.Lowered,
    trials: Trial,
    data: Data,
    folder: Path,
    size: int,
    mesh: Mesh,
    report: Report,
) -> tuple[History, np.ndarray]:
    """Returns the histories and seconds of all trials; those in the folder need no computing."""
    total = len(trials.seed)
    starts = range(0, total, size)
    paths = [folder / f"trials-{start}.npz" for start in starts]
    there = processes.broadcast(np.array([path.exists() for path in paths]))
    counts = [min(size, total - start) for start in starts]
    done = sum(itertools.compress(counts, there))
    report(done, total)
    chunks = list(zip(starts, paths, counts, strict=True))
    # All that is kept is read before anything is trained: a damaged file is reported at once.
    parts = {
        start: read(path, lowered.out_info, count)
        for (start, path, count), kept in zip(chunks, there, strict=True)
        if kept
    }
    compiled = None if all(there) else lowered.compile()
    for start, path, count in chunks:
        if compiled is None or start in parts:
            continue
        began = time.perf_counter()
        history = processes.gather(compiled(select_trials(trials, start, size, mesh), data))
        seconds = np.full(count, (time.perf_counter() - began) / count, np.float32)
        kept = jax.tree.map(lambda leaf, count=count: leaf[:count], history)
        parts[start] = kept, processes.broadcast(seconds)
        if processes.is_first():
            files.write_arrays(path, {**kept._asdict(), SECONDS: seconds})
        done += count
        report(done, total)
    ordered = [parts[start] for start in starts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *ordered)


def parallel_training(config: Config, mesh: Mesh) -> Any:
    """Returns the training of many trials side by side, compiled; devices never talk."""
    # By hand, because an automatic partition may gather arrays that no device needs whole.
    return jax.jit(
        jax.shard_map(
            batch_training(config),
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    )


def batch_training(config: Config) -> Callable[[Trial, Data], History]:
    """Returns the training of many trials on one device."""
    return jax.vmap(functools.partial(train.train, config), (0, None))


def select_trials(trials: Trial, start: int, size: int, mesh: Mesh) -> Trial:
    """Returns `size` trials from `start` on, padded by the last one."""
    rows = np.minimum(np.arange(start, start + size), len(trials.seed) - 1)
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], trials)
    return processes.place(chosen, NamedSharding(mesh, PartitionSpec(AXIS)))


def describe(program: str, trials: Trial, data: Data, chunk: int) -> dict[str, Any]:
    """Returns all that the bits of a sweep depend on."""
    return {
        "program_sha256": hashlib.sha256(program.encode()).hexdigest(),
        "trials_sha256": files.fingerprint(trials),
        "data_sha256": files.fingerprint(data),
        "chunk": chunk,
        "devices": len(jax.devices()),
        "versions": files.versions(),
    }


def read(file: Path, shapes: History, count: int) -> tuple[History, np.ndarray]:
    """Reads histories and seconds of a chunk of `count` trials; only the first process has them.

    Raises:
        BadInput: the file is damaged.
    """
    if not processes.is_first():
        nothing = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), shapes)
        return processes.broadcast((nothing, np.zeros(count, np.float32)))
    arrays: Any = files.read_arrays(file, REMEDY)
    expected = {
        name: ((count, *kept.shape[1:]), kept.dtype) for name, kept in shapes._asdict().items()
    }
    with files.read_errors(file, REMEDY):
        files.check_arrays(arrays, {**expected, SECONDS: ((count,), np.float32)})
    seconds = arrays.pop(SECONDS)
    return processes.broadcast((History(**arrays), seconds))


def check_chunk_size(chunk: int) -> None:
    """Raises `BadInput` unless a chunk has a trial."""
    if chunk < 1:
        raise BadInput(f"the chunk is {chunk}: give 1 or more")


def check_chunks(folder: Path) -> None:
    """Raises `BadInput` where a chunk of a sweep in the folder cannot be read."""
    for path in sorted(folder.glob("trials-*.npz")):
        files.read_arrays(path, REMEDY)


def check_memory(config: Config, trials: Trial, data: Data, chunk: int, memory: int) -> None:
    """Raises `BadInput`, before compiling, where a chunk takes more than `memory` bytes here."""
    devices = jax.local_device_count()
    each_has = chunk // len(jax.devices())
    traced = jax.make_jaxpr(batch_training(config))(resize_trials(trials, each_has), data)
    if devices * (tree_nbytes(data) + FAR_OFF * peak(traced.jaxpr)) < memory:
        return
    shared, each = measure_memory(config, trials, data)
    wanted = devices * (shared + each_has * each)
    if wanted > memory:
        fits = (memory // devices - shared) // each * len(jax.devices())
        advice = (
            f"give a chunk of {fits} or less" if fits > 0 else "not even one fits on each device"
        )
        raise BadInput(
            f"a chunk of {chunk} trials takes about {wanted >> 20} MiB here, and {memory >> 20} "
            f"are free: {advice}"
        )


def measure_memory(config: Config, trials: Trial, data: Data) -> tuple[int, int]:
    """Returns the bytes that the trials on a device share, and the bytes of each trial.

    Both come from XLA's plans for a few and for twice as many, which are never run.
    """

    def planned(count: int) -> int:
        lowered = jax.jit(batch_training(config)).lower(resize_trials(trials, count), data)
        plan: Any = lowered.compile({"xla_llvm_disable_expensive_passes": True}).memory_analysis()
        return plan.temp_size_in_bytes + plan.output_size_in_bytes + plan.argument_size_in_bytes

    once, twice = planned(FEW), planned(2 * FEW)
    each = max(1, (twice - once) // FEW)
    return once - FEW * each, each


def resize_trials(trials: Trial, count: int) -> Trial:
    """Returns `count` trials."""
    return jax.tree.map(lambda leaf: np.resize(leaf, count), trials)


def tree_nbytes(tree: Any) -> int:
    """Returns the bytes of all arrays in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_memory() -> int:
    """Returns the bytes that are free here: of the devices, or of the host where they share it."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit is not None]
    return sum(known) if known else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
