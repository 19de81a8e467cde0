"""The scanned epoch of `experiments` against the same training written by hand in plain JAX.

    python -m benchmarks.epoch [ROUNDS]

Both sides run in one process and take turns; what counts is the median of the paired ratios.
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp

import jaxclip
from experiments.tasks import images as datasets
from experiments.tasks.mnist import Mnist
from experiments.training import train
from experiments.training.config import Config, trial


# The hand-written training begins here.
def by_hand_init(seed):
    first, second = jax.random.split(jax.random.key(seed))
    initialize = jax.nn.initializers.lecun_normal()
    return {
        "w1": initialize(first, (784, 128)),
        "b1": jnp.zeros(128),
        "w2": initialize(second, (128, 10)),
        "b2": jnp.zeros(10),
    }


def by_hand_logits(p, images):
    x = images.reshape(-1, 784).astype(jnp.float32) / 255
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def by_hand_loss(p, images, labels):
    logits = jax.nn.log_softmax(by_hand_logits(p, images))
    return -jnp.take_along_axis(logits, labels[:, None].astype(jnp.int32), axis=1).mean()


@jax.jit
def by_hand_epoch(p, key, data):
    def step(p, rows):
        batch = data.train.images[rows], data.train.labels[rows]
        loss, g = jax.value_and_grad(by_hand_loss)(p, *batch)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
        factor = jnp.minimum(1.0, 1.0 / norm)
        return jax.tree.map(lambda w, x: w - 0.01 * factor * x, p, g), (loss, norm)

    order = jax.random.permutation(key, len(data.train.labels)).reshape(-1, 100)
    p, (losses, norms) = jax.lax.scan(step, p, order)
    right = by_hand_logits(p, data.test.images).argmax(-1) == data.test.labels
    return p, losses, norms, right.mean()


# The hand-written training ends here.


def main(rounds: int) -> None:
    """Prints the time of an epoch of either side, and the ratio."""
    data = jax.device_put(datasets.load("mnist"))
    config, numbers = Config(Mnist(), jaxclip.clip_by_global_norm), trial()
    epoch = jax.jit(functools.partial(train.epoch, config))
    state = jax.jit(functools.partial(train.init, config))(numbers, data)
    params = by_hand_init(0)

    def harness() -> None:
        jax.block_until_ready(epoch(numbers, data, state))

    def by_hand() -> None:
        jax.block_until_ready(by_hand_epoch(params, jax.random.key(1), data))

    for side in (harness, by_hand):
        side()
    pairs = []
    for turn in range(rounds):
        sides = (harness, by_hand) if turn % 2 else (by_hand, harness)
        seconds = {side: measure(side) for side in sides}
        pairs.append((seconds[harness], seconds[by_hand]))
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"experiments {ours:.3f} s, by hand {theirs:.3f} s an epoch (medians of {rounds})")
    print(
        f"ratio {statistics.median(ratios):.3f}, "
        f"quartiles {ratios[rounds // 4]:.3f} to {ratios[-1 - rounds // 4]:.3f}"
    )


def measure(side) -> float:
    """Returns how many seconds a call takes."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20)
