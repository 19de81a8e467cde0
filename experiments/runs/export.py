"""The model of a run for other machines: one StableHLO file for each kind of weights.

    export/float32.stablehlo   what `jax.export` serializes, for CPU, CUDA and TPU, any batch size
    export.json                a record a file: its size, and how it did in a process of its own

Each file holds the weights, and needs nothing but JAX: `jax.export.deserialize`.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from experiments import files
from experiments.compression.quantization import Grid, dequantize, quantize, quantized_nbytes
from experiments.compression.weights import map_kernels, nbytes
from experiments.errors import BadInput
from experiments.runs import exported, serving
from experiments.runs.exported import Exported
from experiments.runs.folder import Run
from experiments.runs.run import Job
from experiments.tasks.mnist import Pictures
from experiments.training import train
from experiments.training.config import Params

PLATFORMS = ("cpu", "cuda", "tpu")
CODES = Grid(8)
ROUNDING = 1e-4  # of the largest logit, between two compilations of one float32 model


def export(job: Job, run: Run, kinds: Sequence[str]) -> list[Exported]:
    """Writes the model of a run with each kind of weights, tries each, and returns the records.

    Args:
        job: the training of the run.
        run: its folder.
        kinds: names of `WEIGHTS`.

    Raises:
        BadInput: the run has no checkpoint, or an export does not compute what its model does.
    """
    with run.lock():
        task, params = job.config.task, read_params(job, run)
        assert isinstance(task, Pictures)
        images, labels = (np.asarray(column) for column in job.data.test)
        expected = np.asarray(serving.in_batches(jax.jit(task.logits), params, images))
        (run.folder / "export").mkdir(exist_ok=True)
        records = []
        for kind in kinds:
            model, size = WEIGHTS[kind](task.logits, params)
            path = run.folder / "export" / f"{kind}.stablehlo"
            content = serialize(model, images)
            files.write(path, lambda file, content=content: file.write(content))
            measured, logits = serve(path, images)
            difference = largest_difference(logits, expected)
            check_same(kind, difference, expected)
            records.append(Exported(
                weights=kind,
                file=str(path.relative_to(run.folder)),
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                weight_bytes=size,
                largest_difference=difference,
                accuracy=float(np.mean(logits.argmax(1) == labels)),
                **measured,
            ))  # fmt: skip
        kept = {record["weights"]: record for record in [*exported.read(run), *records]}
        files.write_json(
            run.folder / "export.json", [kept[kind] for kind in WEIGHTS if kind in kept]
        )
    return records


def read_params(job: Job, run: Run) -> Params:
    """Returns the parameters in the latest checkpoint of a run, whatever versions trained it."""
    epochs = run.checkpoint_epochs()
    if not epochs:
        raise BadInput(
            f"{run.folder} has no checkpoint: continue the run with --resume {run.folder}"
        )
    like = jax.eval_shape(functools.partial(train.init, job.config), job.trial, job.data)
    try:
        record = run.verify(max(epochs), like)
        return run.read(max(epochs), like, record["state_sha256"]).params
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"the checkpoint of epoch {max(epochs)} in {run.folder} is damaged ({reason}): "
            f"continue the run with --resume {run.folder}, which repairs it"
        ) from error


Logits = Callable[[Params, Any], jax.Array]
Model = Callable[[Any], jax.Array]


def in_float32(logits: Logits, params: Params) -> tuple[Model, int]:
    """Returns the model as it is, and the bytes of its weights."""
    return functools.partial(logits, params), nbytes(params)


def in_bfloat16(logits: Logits, params: Params) -> tuple[Model, int]:
    """Returns the model with kernels that are stored as bfloat16, and the bytes of its weights."""
    stored = map_kernels(lambda kernel: kernel.astype(jnp.bfloat16), params)

    def model(images: Any) -> jax.Array:
        return logits(jax.tree.map(lambda x, like: x.astype(like.dtype), stored, params), images)

    return model, nbytes(stored)


def in_int8(logits: Logits, params: Params) -> tuple[Model, int]:
    """Returns the model with kernels of 8 bits and a scale a channel, and their bytes."""
    stored = quantize(params, CODES)
    return lambda images: logits(dequantize(stored), images), quantized_nbytes(params, CODES)


WEIGHTS: Mapping[str, Callable[[Logits, Params], tuple[Model, int]]] = {
    "float32": in_float32,
    "bfloat16": in_bfloat16,
    "int8": in_int8,
}


def serialize(model: Model, images: np.ndarray) -> bytes:
    """Returns a model of batches of any size as StableHLO, its weights among the constants."""
    [batch] = jax.export.symbolic_shape("batch")
    like = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    return bytes(jax.export.export(jax.jit(model), platforms=PLATFORMS)(like).serialize())


def serve(model: Path, images: np.ndarray) -> tuple[serving.Measured, np.ndarray]:
    """Returns what `serving` measures of a model in a process of its own, and its logits."""
    with tempfile.TemporaryDirectory() as scratch:
        given, logits = Path(scratch) / "images.npy", Path(scratch) / "logits.npy"
        np.save(given, images)
        command = [sys.executable, "-m", serving.__name__, str(model), str(given), str(logits)]
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise BadInput(
                f"{model} cannot be run in a process of its own: "
                f"{' '.join(done.stderr.split())[-300:]}"
            )
        measured = json.loads(done.stdout.splitlines()[-1])
        files.check(measured, serving.Measured)
        return measured, np.load(logits)


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference of two arrays; where both are nan there is none."""
    both = np.isnan(one) & np.isnan(other)
    return float(np.max(np.where(both | (one == other), 0, np.abs(one - other))))


def check_same(kind: str, difference: float, logits: np.ndarray) -> None:
    """Raises `BadInput` where a model that should compute the same logits does not."""
    bound = ROUNDING * max(1.0, float(np.max(np.abs(logits), where=np.isfinite(logits), initial=0)))
    if kind == "float32" and not difference <= bound:
        raise BadInput(
            f"the logits of the exported float32 model differ by {difference:.3g} from those of "
            f"the run, and rounding explains {bound:.1g}: please report this"
        )
