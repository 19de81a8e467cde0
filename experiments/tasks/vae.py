"""Handwritten digits, by a variational autoencoder."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.tasks.images import Images
from experiments.tasks.mnist import PIXELS, OfImages
from experiments.training.config import Params


class Drawn(NamedTuple):
    """Labeled images, and the noise f32[n, latent] of their codes."""

    images: Any
    labels: Any
    noise: Any


class Autoencoder(nnx.Module):
    """An encoder to the mean and the log variance of a code, and a decoder to logits of pixels."""

    def __init__(self, hidden: int, latent: int, rngs: nnx.Rngs):
        self.encode = nnx.Linear(PIXELS, hidden, rngs=rngs)
        self.code = nnx.Linear(hidden, 2 * latent, rngs=rngs)
        self.decode = nnx.Linear(latent, hidden, rngs=rngs)
        self.pixels = nnx.Linear(hidden, PIXELS, rngs=rngs)

    def posterior(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the means and the log variances f32[batch, latent] of f32[batch, pixels]."""
        mean, log_variance = jnp.split(self.code(nnx.relu(self.encode(x))), 2, -1)
        return mean, log_variance

    def likelihood(self, code: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, pixels] of the codes f32[batch, latent]."""
        return self.pixels(nnx.relu(self.decode(code)))


@dataclasses.dataclass(frozen=True)
class Vae(OfImages):
    r"""The evidence lower bound of an image, in nats; the loss is its negative.

    $$E_{q(z|x)} \log p(x|z) - D_{KL}(q(z|x) \,\|\, N(0, 1))$$

    A pixel is a Bernoulli variable whose probability is its gray, and the expectation is of one
    draw, which `draw` adds to a batch.

    Attributes:
        hidden: the width of the hidden layers.
        latent: how many numbers a code has.

    Source:
        Kingma, Welling 2013, arXiv 1312.6114.
    """

    hidden: int = 200
    latent: int = 20

    def model(self, rngs: nnx.Rngs) -> Autoencoder:
        """Returns the network with new parameters."""
        return Autoencoder(self.hidden, self.latent, rngs)

    def draw(self, key: jax.Array, batch: Images) -> Drawn:
        """Returns a batch with noise for the codes of its images."""
        shape = (len(batch.images), self.latent)
        return Drawn(batch.images, batch.labels, jax.random.normal(key, shape))

    def loss(self, params: Params, batch: Drawn) -> jax.Array:
        """Returns the mean negative bound f32[] of a batch."""
        return -self.bounds(params, batch).mean()

    def bounds(self, params: Params, batch: Drawn) -> jax.Array:
        """Returns the bound f32[batch] of every image."""
        network = self.network(params)
        x = to_pixels(batch.images)
        mean, log_variance = network.posterior(x)
        logits = network.likelihood(mean + jnp.exp(log_variance / 2) * batch.noise)
        reconstruction = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1) / 2
        return -reconstruction - divergence

    def score(self, params: Params, test: Images) -> jax.Array:
        """Returns the mean bound f32[] of the test images in hundreds of nats.

        The noise of an image is the same every time.
        """
        noise = self.draw(jax.random.key(0), test)

        def one(example: Drawn) -> jax.Array:
            [bound] = self.bounds(params, jax.tree.map(lambda column: column[None], example))
            return bound

        return jnp.mean(jax.lax.map(one, noise, batch_size=1000)) / 100

    def samples(self, params: Params, key: jax.Array, count: int) -> jax.Array:
        """Returns images f32[count, 28, 28] of codes drawn from the prior: their grays, 0 to 1."""
        code = jax.random.normal(key, (count, self.latent))
        return jax.nn.sigmoid(self.network(params).likelihood(code)).reshape(count, 28, 28)

    def reconstructions(self, params: Params, images: jax.Array) -> jax.Array:
        """Returns the images f32[n, 28, 28] that the mean codes of u8[n, 28, 28, 1] decode to."""
        network = self.network(params)
        mean, _ = network.posterior(to_pixels(images))
        return jax.nn.sigmoid(network.likelihood(mean)).reshape(len(images), 28, 28)


def to_pixels(images: jax.Array) -> jax.Array:
    """Returns the images u8[n, 28, 28, 1] as grays f32[n, pixels] from 0 to 1."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255
