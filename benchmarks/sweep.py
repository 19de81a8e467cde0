"""A sweep of 64 MNIST trainings against the matrix products in it, and against PyTorch.

    python -m benchmarks.sweep [ROUNDS]

The sweep has 8 limits and 8 seeds; one epoch of it takes turns with its batched products alone, on
the same devices, and with one epoch of the same training in PyTorch, one model after the other, its
tensors in memory and all cores at work. PyTorch is no extra of ours: without it (`pip install
torch`) that side is left out, and the output says so.
"""

import importlib
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxclip
from benchmarks.paired import seconds
from experiments.studies import compare
from experiments.sweeps import grid, sweep
from experiments.tasks import images as datasets
from experiments.tasks.mnist import Mnist
from experiments.training.config import Config

TRIALS, BATCH, INPUTS, HIDDEN, CLASSES, STEPS = 64, 100, 784, 128, 10, 600


def trainings() -> Callable[[], object]:
    """Returns one epoch of all trainings, compiled."""
    mesh = Mesh(np.array(jax.devices()), (sweep.AXIS,))
    config = Config(Mnist(), jaxclip.clip_by_global_norm, epochs=1)
    limits = grid.values("limit", *np.logspace(-1, 1, 8))
    trials = grid.stack(grid.product(limits, grid.values("seed", *range(8))))
    trials = jax.device_put(trials, NamedSharding(mesh, PartitionSpec(sweep.AXIS)))
    data = jax.device_put(datasets.load("mnist"), NamedSharding(mesh, PartitionSpec()))
    compiled = sweep.parallel_training(config, mesh).lower(trials, data).compile()
    return lambda: jax.block_until_ready(compiled(trials, data))


def products() -> Callable[[], object]:
    """Returns the matrix products of that epoch, and of its test, and nothing else."""
    mesh = Mesh(np.array(jax.devices()), (sweep.AXIS,))
    spread = PartitionSpec(sweep.AXIS)

    def one(x, w1, w2, tests):
        def step(carry, _):
            w1, w2 = carry
            h = x @ w1
            y = h @ w2
            dw2, dh = h.T @ y, y @ w2.T
            # The next step's weights are these, so that no product can be left out.
            return (x.T @ dh, dw2), None

        (w1, w2), _ = jax.lax.scan(step, (w1, w2), length=STEPS)
        return jnp.sum((tests @ w1) @ w2)

    def all_of_them(x, w1, w2, tests):
        return jax.vmap(one, (0, 0, 0, None))(x, w1, w2, tests)

    specs = (spread, spread, spread, PartitionSpec())
    compiled = jax.jit(
        jax.shard_map(all_of_them, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)
    )
    shapes = (TRIALS, BATCH, INPUTS), (TRIALS, INPUTS, HIDDEN), (TRIALS, HIDDEN, CLASSES)
    arguments = [
        jax.device_put(jnp.zeros(shape), NamedSharding(mesh, spec))
        for shape, spec in zip((*shapes, (10_000, INPUTS)), specs, strict=True)
    ]
    return lambda: jax.block_until_ready(compiled(*arguments))


def pytorch(count: int) -> Callable[[], object] | None:
    """Returns one epoch of `count` trainings in PyTorch, or None where there is none."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    data = datasets.load("mnist")
    images, tests = (
        torch.from_numpy(part.images.reshape(-1, INPUTS).copy()) for part in (data.train, data.test)
    )
    labels, answers = (
        torch.from_numpy(part.labels.astype(np.int64)) for part in (data.train, data.test)
    )
    torch.set_num_threads(os.cpu_count() or 1)

    def train() -> float:
        model = torch.nn.Sequential(
            torch.nn.Linear(INPUTS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for rows in torch.randperm(len(images)).split(BATCH):
            logits = model(images[rows].float() / 255)
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            return (model(tests.float() / 255).argmax(-1) == answers).float().mean().item()

    return lambda: [train() for _ in range(count)]


def main(rounds: int) -> None:
    """Prints the times of all sides and their ratios."""
    compare.spread_over_cores()
    torch_trainings = 4
    sides = {"sweep": trainings(), "products": products()}
    torch = pytorch(torch_trainings)
    if torch is None:
        print("PyTorch is not installed: that side is left out")
    else:
        sides["PyTorch"] = torch
    for side in sides.values():
        side()
    taken = [{name: seconds(side) for name, side in sides.items()} for _ in range(rounds)]
    ours, bare = ([one[name] for one in taken] for name in ("sweep", "products"))
    print(f"{TRIALS} trainings, an epoch: {statistics.median(ours):.2f} s on {rounds} rounds")
    print(f"their matrix products alone: {statistics.median(bare):.2f} s")
    shares = [b / o for b, o in zip(bare, ours, strict=True)]
    print(f"throughput of the products that is reached: {100 * statistics.median(shares):.0f} %")
    if torch is not None:
        times = [one["PyTorch"] / torch_trainings * TRIALS / one["sweep"] for one in taken]
        print(f"trainings a second over those of PyTorch: {statistics.median(times):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
