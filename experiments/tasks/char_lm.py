"""Text, character by character, by a small transformer.

The text is that of the standard library's `pydoc_data.topics`: half a million characters of the
Python reference, which differ by the version of Python. No download.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.tasks.network import OfNetwork
from experiments.training.config import Params
from experiments.training.data import Data

TESTED = 256  # windows of the last tenth of the text


class Block(nnx.Module):
    """Causal attention and a feed-forward layer, each after a norm, with residual connections."""

    def __init__(self, width: int, heads: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs)
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, use_bias=False, dtype=dtype, decode=False, rngs=rngs
        )
        self.feed_forward_norm = nnx.RMSNorm(width, rngs=rngs)
        self.widen = linear(width, 4 * width)
        self.narrow = linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the states f32[batch, length, width] after the block."""
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.attention_norm(x), mask=mask).astype(x.dtype)
        return x + self.narrow(nnx.gelu(self.widen(self.feed_forward_norm(x)))).astype(x.dtype)


class Gpt(nnx.Module):
    """A transformer whose embedding is its output layer as well."""

    def __init__(
        self,
        symbols: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        small = nnx.initializers.normal(0.02)
        embed = functools.partial(nnx.Embed, embedding_init=small, rngs=rngs)
        self.embedding = embed(symbols, width)
        self.positions = embed(context, width)
        self.blocks = nnx.List(Block(width, heads, dtype, rngs) for _ in range(layers))
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, length, symbols] of the symbol after each of i32[...]."""
        x = self.embedding(symbols) + self.positions(jnp.arange(symbols.shape[-1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x))


@dataclasses.dataclass(frozen=True)
class CharLm(OfNetwork):
    """Cross-entropy of the next character, scored by its accuracy.

    Attributes:
        width: of the states.
        layers: how many blocks.
        heads: of the attention.
        context: how many characters it sees.
        windows: how many windows of the text there are to learn from.
        precision: the type that the blocks compute in; the parameters, the norms, and what flows
            beside the blocks stay float32.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    context: int = 32
    windows: int = 4000
    precision: Literal["float32", "bfloat16"] = "float32"

    def data(self, folder: Path | None = None) -> Data:
        """Returns windows u8[n, context + 1] of the text; those of its last tenth are the test."""
        symbols = encode()
        split = len(symbols) * 9 // 10
        rng = np.random.default_rng(0)
        return Data(
            train=windows(rng, symbols[:split], self.windows, self.context + 1),
            test=windows(rng, symbols[split:], TESTED, self.context + 1),
        )

    def loss(self, params: Params, batch: jax.Array) -> jax.Array:
        """Returns the mean cross-entropy f32[] of the characters of a batch of windows."""
        logits, following = self.predict(params, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    def score(self, params: Params, test: jax.Array) -> jax.Array:
        """Returns the accuracy f32[] of the next characters."""
        logits, following = self.predict(params, test)
        return jnp.mean(logits.argmax(-1) == following, dtype=jnp.float32)

    def predict(self, params: Params, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of every character but the first, and those characters."""
        text = text.astype(jnp.int32)
        return self.network(params)(text[:, :-1]), text[:, 1:]

    def model(self, rngs: nnx.Rngs) -> Gpt:
        """Returns the transformer with new parameters."""
        sizes = self.context, self.width, self.layers, self.heads
        return Gpt(len(alphabet()), *sizes, jnp.dtype(self.precision), rngs)


@functools.cache
def text() -> str:
    """The text, topic after topic."""
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


@functools.cache
def alphabet() -> str:
    """The characters of the text, in their order."""
    return "".join(sorted(set(text())))


def encode() -> np.ndarray:
    """Returns the text as numbers u8[characters] of the alphabet."""
    numbers = {character: number for number, character in enumerate(alphabet())}
    return np.array([numbers[character] for character in text()], np.uint8)


def windows(rng: np.random.Generator, symbols: np.ndarray, count: int, length: int) -> np.ndarray:
    """Returns `count` windows u8[count, length], from places drawn at random, in their order."""
    # In their order, so that held-out windows come from another part of the text.
    starts = np.sort(rng.integers(0, len(symbols) - length + 1, count))
    return np.lib.stride_tricks.sliding_window_view(symbols, length)[starts]
