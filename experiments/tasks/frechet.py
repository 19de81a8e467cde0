"""The Fréchet distance of images, in the features of a network that has learned the digits."""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxclip
from experiments.tasks import images
from experiments.tasks.mnist_cnn import MnistCnn
from experiments.tasks.trained import trained
from experiments.training.config import Config, Params, trial

JUDGE = MnistCnn()
TRAINING = Config(
    JUDGE,
    jaxclip.clip_by_global_norm,
    functools.partial(optax.sgd, momentum=0.9),
    epochs=3,
)
AT_ONCE = 500  # images


@functools.cache
def judge() -> Params:
    """Returns the parameters of the network whose features count."""
    # Also where a trace asks for them: they are constants there.
    with jax.ensure_compile_time_eval():
        return trained("judge", TRAINING, trial(learning_rate=0.05), images.load("mnist"))


def features(params: Params, pictures: jax.Array) -> jax.Array:
    """Returns the features f32[n, 32] of pictures f32[n, 28, 28] in grays from 0 to 1."""
    network = JUDGE.network(params)

    def one(picture: jax.Array) -> jax.Array:
        [found] = network.features(picture[None, :, :, None])
        return found

    return jax.lax.map(one, pictures, batch_size=AT_ONCE)


def distance(one: jax.Array, other: jax.Array) -> jax.Array:
    r"""Returns the Fréchet distance f32[] of features f32[n, d] and f32[m, d].

    $$\|\mu_1 - \mu_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})$$

    Source:
        Heusel et al. 2017, arXiv 1706.08500.
    """
    apart = jnp.sum(jnp.square(one.mean(0) - other.mean(0)))
    first, second = jnp.cov(one.T), jnp.cov(other.T)
    values, vectors = jnp.linalg.eigh(first)
    root = vectors @ jnp.diag(jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    between = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return apart + jnp.trace(first) + jnp.trace(second) - 2 * between


def noise_floor(pictures: jax.Array) -> jax.Array:
    """Returns the distance f32[] of two halves of the real pictures: less cannot be seen."""
    half = len(pictures) // 2
    found = features(judge(), pictures)
    return distance(found[:half], found[half:])
