"""Handwritten digits by a Wasserstein GAN: a generator and its critic, trained in turn."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxclip
from experiments.tasks import frechet
from experiments.tasks.images import Images
from experiments.tasks.mnist import PIXELS, OfImages
from experiments.tasks.vae import to_pixels
from experiments.training.config import Params

JUDGED = 5000  # samples
GENERATOR, CRITIC = "generator", "critic"


class Drawn(NamedTuple):
    """Labeled images, the codes f32[n, latent] of samples, and what mixes both f32[n, 1]."""

    images: Any
    labels: Any
    codes: Any
    shares: Any


class Mlp(nnx.Module):
    """A network of two hidden layers with leaky ReLU."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(inputs, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns f32[batch, outputs] of f32[batch, inputs]."""
        x = nnx.leaky_relu(self.first(x), 0.2)
        return self.output(nnx.leaky_relu(self.second(x), 0.2))


class Players(nnx.Module):
    """The generator and the critic."""

    def __init__(self, latent: int, hidden: int, rngs: nnx.Rngs):
        self.generator = Mlp(latent, hidden, PIXELS, rngs)
        self.critic = Mlp(PIXELS, hidden, 1, rngs)

    def generate(self, codes: jax.Array) -> jax.Array:
        """Returns the pictures f32[n, pixels] of the codes f32[n, latent], grays from 0 to 1."""
        return nnx.sigmoid(self.generator(codes))

    def judge(self, x: jax.Array) -> jax.Array:
        """Returns how real the critic finds the pictures f32[n, pixels], f32[n]."""
        return self.critic(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class Wgan(OfImages):
    r"""The critic's estimate of the distance between samples and images, from two players at once.

    $$\max_f \min_g\; E f(x) - E f(g(z)) - \lambda\, E (\|\nabla f(\hat x)\| - 1)^2$$

    The value of the loss is the critic's; its gradient is for each player that of its own loss. A
    critic is worth something where it is Lipschitz: by a clip of its weights, by limits of their
    singular values, or by the penalty, whose $\lambda$ is `task.penalty` of a `Trial`. It is
    scored by the negative Fréchet distance of `JUDGED` samples, always of the same codes, from as
    many images.

    Attributes:
        hidden: the width of the hidden layers.
        latent: how many numbers a code has.
        penalized: whether there is a gradient penalty.

    Source:
        Arjovsky, Chintala, Bottou 2017, arXiv 1701.07875; Gulrajani et al. 2017, arXiv 1704.00028.
    """

    hidden: int = 128
    latent: int = 32
    penalized: bool = False

    def model(self, rngs: nnx.Rngs) -> Players:
        """Returns the players with new parameters."""
        return Players(self.latent, self.hidden, rngs)

    def draw(self, key: jax.Array, batch: Images) -> Drawn:
        """Returns a batch with codes for as many samples."""
        count = len(batch.images)
        codes, shares = jax.random.split(key)
        normal = jax.random.normal(codes, (count, self.latent))
        return Drawn(batch.images, batch.labels, normal, jax.random.uniform(shares, (count, 1)))

    def loss(self, params: Params, batch: Drawn, penalty: float | jax.Array = 10.0) -> jax.Array:
        """Returns the critic's loss f32[], with the gradient of each player's own loss."""
        stop = jax.lax.stop_gradient
        real = to_pixels(batch.images)
        critic = self.network({**params, GENERATOR: stop(params[GENERATOR])})
        fake = critic.generate(batch.codes)
        loss = critic.judge(fake).mean() - critic.judge(real).mean()
        if self.penalized:
            between = batch.shares * real + (1 - batch.shares) * fake
            slopes = jax.grad(lambda x: critic.judge(x).sum())(between)
            loss += penalty * jnp.mean((optax.safe_norm(slopes, 1e-6, axis=1) - 1) ** 2)
        generator = self.network({**params, CRITIC: stop(params[CRITIC])})
        own = -generator.judge(generator.generate(batch.codes)).mean()
        return loss + own - stop(own)

    def score(self, params: Params, test: Images) -> jax.Array:
        """Returns the negative Fréchet distance f32[] of samples from test images."""
        judge = frechet.judge()
        pictures = self.samples(params, jax.random.key(0), JUDGED)
        real = to_pixels(test.images[:JUDGED]).reshape(-1, 28, 28)
        found = (frechet.features(judge, one) for one in (pictures, real))
        return -frechet.distance(*found)

    def samples(self, params: Params, key: jax.Array, count: int) -> jax.Array:
        """Returns samples f32[count, 28, 28]: their grays, 0 to 1."""
        codes = jax.random.normal(key, (count, self.latent))
        return self.network(params).generate(codes).reshape(count, 28, 28)


def in_turn(
    critic: optax.GradientTransformation, generator: optax.GradientTransformation, turns: int = 5
) -> optax.GradientTransformation:
    """Returns the transformation with one for each player, the generator's every `turns`-th step.

    Between its turns the generator and its state stay as they are.
    """

    def its_turn(step: Any, **further: Any) -> Any:
        return step % turns == turns - 1

    waits = optax.transforms.conditionally_mask(generator, its_turn)
    return optax.partition({CRITIC: critic, GENERATOR: waits}, label_players)


def each_player(
    clip: Callable[..., optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns the transformation that clips the gradient of each player by itself.

    Args:
        clip: makes the clip of a `name`; that of the critic is `clip`, the one under study.
    """
    return optax.partition(
        {CRITIC: clip(name="clip"), GENERATOR: clip(name="clip_generator")}, label_players
    )


def label_players(params: Params) -> Any:
    """Returns the player of every parameter."""
    return jax.tree.map_with_path(lambda path, _: path[0].key, params)


def limit_spectrum(limit: Any) -> optax.GradientTransformation:
    """Returns the transformation, last of a chain, after which no weight is beyond the limit.

    Every kernel is projected onto those with no larger singular value; biases stay as they are.
    """
    clip = optax.masked(
        jaxclip.clip_singular_values(limit, name="spectrum"),
        lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped, state = clip.update(optax.apply_updates(params, updates), state, params)
        return jax.tree.map(lambda new, old: new - old, clipped, params), state

    return optax.GradientTransformation(clip.init, update)
