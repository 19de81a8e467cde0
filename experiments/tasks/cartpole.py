"""A pole balanced on a cart, learned by an actor and a critic.

The cart is that of Barto, Sutton, Anderson 1983, with the numbers of OpenAI Gym's CartPole-v1, in
JAX: forty lines, for which a dependency would be too much. The gradient is that of proximal policy
optimization (Schulman et al. 2017, arXiv 1707.06347) at the first step after its rollout, where the
ratio of the policies is 1 and its own clip never acts: that of an advantage actor-critic, whose
implementations clip the gradient at a norm of 0.5 by default.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.tasks.network import OfNetwork
from experiments.training.config import Params
from experiments.training.data import Data

GRAVITY, MASS_CART, MASS_POLE, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
FORCE, SECONDS = 10.0, 0.02
FARTHEST, STEEPEST = 2.4, 12 * np.pi / 180
LONGEST = 500  # steps of an episode, and the best that can be reached
DISCOUNT, SMOOTHING = 0.99, 0.95  # of generalized advantages
VALUE, ENTROPY = 0.5, 0.01  # what they count in the loss


class ActorCritic(nnx.Module):
    """Two layers of tanh, read out as the logits of two actions and as a value."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.actor = nnx.Linear(width, 2, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.critic = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits f32[..., 2] and the value f32[...] of states f32[..., 4]."""
        x = nnx.tanh(self.second(nnx.tanh(self.first(state))))
        return self.actor(x), self.critic(x)[..., 0]


class Steps(NamedTuple):
    """The steps of a rollout: states f32[n, 4], actions i32[n], whether the pole fell bool[n]."""

    state: jax.Array
    action: jax.Array
    fell: jax.Array


@dataclasses.dataclass(frozen=True)
class CartPole(OfNetwork):
    """An actor-critic on a cart with a pole; a batch is of seeds, each a rollout.

    It is scored by the mean share of the longest episode that the pole stays up for.

    Attributes:
        width: of the layers.
        steps: of a rollout, which begins anew where the pole falls.
        rollouts: how many seeds there are to learn from.
    """

    width: int = 64
    steps: int = 128
    rollouts: int = 1792

    def data(self, folder: Path | None = None) -> Data:
        """Returns seeds to learn from, and 64 others to be tested on."""
        seeds = np.arange(self.rollouts + 64, dtype=np.int32)
        return Data(train=seeds[:-64], test=seeds[-64:])

    def loss(self, params: Params, batch: jax.Array) -> jax.Array:
        """Returns the actor-critic loss f32[] of the rollouts of a batch of seeds i32[n]."""
        rollouts = jax.vmap(self.rollout, (None, 0))(jax.lax.stop_gradient(params), batch)
        logits, values = self.network(params)(rollouts.state)
        advantages, returns = jax.vmap(generalize)(jax.lax.stop_gradient(values), rollouts.fell)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        odds = jax.nn.log_softmax(logits)
        # The last state only gives a value to begin from.
        chosen = jnp.take_along_axis(odds, rollouts.action[..., None], -1)[:, :-1, 0]
        policy = -jnp.mean(chosen * advantages)
        value = jnp.mean((values[:, :-1] - returns) ** 2)
        entropy = -jnp.mean(jnp.sum(jnp.exp(odds) * odds, -1))
        return policy + VALUE * value - ENTROPY * entropy

    def score(self, params: Params, test: jax.Array) -> jax.Array:
        """Returns the mean share f32[] of the longest episode, over seeds, without chance."""

        def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple:
            state, up = carry
            logits, _ = self.network(params)(state)
            state = jax.vmap(move)(state, logits.argmax(-1))
            up = up & ~jax.vmap(has_fallen)(state)
            return (state, up), up

        first = jax.vmap(lambda seed: start(jax.random.key(seed)))(test)
        carry = first, jnp.ones(len(first), bool)
        _, up = jax.lax.scan(step, carry, None, length=LONGEST)
        return jnp.mean(up, dtype=jnp.float32)

    def rollout(self, params: Params, seed: jax.Array) -> Steps:
        """Returns the steps of a seed i32[], by chance as the policy has it."""

        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, Steps]:
            logits, _ = self.network(params)(state)
            action = jax.random.categorical(key, logits)
            after = move(state, action)
            fell = has_fallen(after)
            anew = start(jax.random.fold_in(key, 0))
            return jnp.where(fell, anew, after), Steps(state, action, fell)

        first, rest = jax.random.split(jax.random.key(seed))
        _, steps = jax.lax.scan(step, start(first), jax.random.split(rest, self.steps + 1))
        return steps

    def model(self, rngs: nnx.Rngs) -> ActorCritic:
        """Returns the network with new parameters."""
        return ActorCritic(self.width, rngs)


def start(key: jax.Array) -> jax.Array:
    """Returns a first state f32[4]: place, speed, angle and its speed, all near 0."""
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)


def move(state: jax.Array, action: jax.Array) -> jax.Array:
    """Returns the state after a step, with a push to the left for 0 and to the right for 1."""
    _, speed, angle, turn = state
    force = jnp.where(action == 1, FORCE, -FORCE)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    mass = MASS_CART + MASS_POLE
    push = (force + MASS_POLE * HALF_LENGTH * turn**2 * sine) / mass
    inertia = HALF_LENGTH * (4 / 3 - MASS_POLE * cosine**2 / mass)
    turning = (GRAVITY * sine - cosine * push) / inertia
    speeding = push - MASS_POLE * HALF_LENGTH * turning * cosine / mass
    change = jnp.stack([speed, speeding, turn, turning])
    return state + SECONDS * change


def has_fallen(state: jax.Array) -> jax.Array:
    """Returns whether the pole is too steep, or the cart too far away, bool[]."""
    return (jnp.abs(state[0]) > FARTHEST) | (jnp.abs(state[2]) > STEEPEST)


def generalize(values: jax.Array, fell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the generalized advantages f32[n - 1] and returns of a rollout, a reward of 1 a step.

    Args:
        values: f32[n], of every state.
        fell: bool[n], whether the pole fell in the step from there.
    """
    goes_on = 1 - fell[:-1].astype(jnp.float32)
    surprise = 1 + DISCOUNT * goes_on * values[1:] - values[:-1]

    def back(later: jax.Array, here: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        surprise, goes_on = here
        advantage = surprise + DISCOUNT * SMOOTHING * goes_on * later
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros(()), (surprise, goes_on), reverse=True)
    return advantages, advantages + values[:-1]
