"""An exported model, run in a process of its own with the paths of MODEL, IMAGES and LOGITS.

It loads what `jax.export` wrote, times it, and writes the logits of all images; nothing of the
training is imported. The last line of its output is a `Measured`.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.export
import numpy as np

BATCHES = (1, 32)
AT_ONCE = 1000  # images, when time does not count
ROUNDS, SECONDS = 300, 2.0  # of a timing, whichever ends first


class Measured(TypedDict):
    """What a process measures of a model; the attributes are those of `exported.Exported`."""

    load_seconds: float
    milliseconds: Mapping[str, float]
    peak_mib: float
    runtime_mib: float


def main(model: str, images: str, logits: str) -> None:
    """Loads, times and applies a model."""
    examples = np.load(images)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(1)))  # what JAX itself takes
    runtime = peak_mib()
    start = time.perf_counter()
    call = jax.jit(jax.export.deserialize(bytearray(Path(model).read_bytes())).call)
    jax.block_until_ready(call(examples[:1]))
    loaded = time.perf_counter() - start
    times = {str(size): milliseconds(call, examples[:size]) for size in BATCHES}
    measured = Measured(
        load_seconds=round(loaded, 3), milliseconds=times, peak_mib=peak_mib(), runtime_mib=runtime
    )
    np.save(logits, in_batches(lambda _, batch: call(batch), None, examples))
    print(json.dumps(measured))


def milliseconds(call: Callable[[Any], jax.Array], batch: np.ndarray) -> float:
    """Returns the median time of a call, with its way to the device and back."""
    for _ in range(3):
        np.asarray(call(batch))
    times, end = [], time.perf_counter() + SECONDS
    while len(times) < ROUNDS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        np.asarray(call(batch))
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 4)


def peak_mib() -> float:
    """Returns the largest resident memory that this process had, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` counts that of the parent as well, as Linux keeps it
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return round(int(line.split()[1]) / 1024, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def in_batches(logits: Callable[[Any, Any], jax.Array], params: Any, images: Any) -> np.ndarray:
    """Returns the logits of all images, some at a time."""
    starts = range(0, len(images), AT_ONCE)
    return np.concatenate([np.asarray(logits(params, images[at : at + AT_ONCE])) for at in starts])


if __name__ == "__main__":
    main(*sys.argv[1:])
