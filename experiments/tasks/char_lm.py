"""Text, character by character, by a small transformer.

The text is in the repository: the New Testament of 1611, 949,469 characters of 65 kinds. No
download, and the same under every version of Python.
"""

import dataclasses
import functools
import hashlib
import lzma
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import files
from experiments.tasks.network import OfNetwork
from experiments.training.config import Params
from experiments.training.data import Data

TEXT = Path(__file__).parents[1] / "text" / "new_testament.txt.xz"
CHECKSUM = "40c4b1c63c8d41258db610cd1e7e3875943db656f2d37c0dc6d1b8662cb76384"  # SHA-256, unpacked
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

    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64
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
    """The text, a verse a line."""
    remedy = "restore it from the repository"
    with files.read_errors(TEXT, remedy):
        try:
            content = lzma.decompress(TEXT.read_bytes())
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
        if hashlib.sha256(content).hexdigest() != CHECKSUM:
            raise ValueError("its SHA-256 is another")
    return content.decode("ascii")


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


# 1.2 million parameters, as people train them for a first look.
GPT = CharLm(width=128, layers=6, heads=4, context=128)
