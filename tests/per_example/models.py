"""Small models in plain JAX, each a loss of one example with parameters and a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH = 6


class Model(NamedTuple):
    """A loss `(params, *example) -> scalar`, in the dtype of what it is given."""

    loss: Callable
    params: Any
    batch: tuple


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) / max(1, s[0]) ** 0.5 for s in shapes]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    chosen = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(chosen * jax.nn.log_softmax(logits), -1)


LABELS = np.arange(BATCH) % 3
VECTORS = np.random.default_rng(1).normal(size=(BATCH, 5))
SEQUENCES = np.random.default_rng(2).normal(size=(BATCH, 4, 5))
IMAGES = np.random.default_rng(3).normal(size=(BATCH, 8, 7, 4))
TOKENS = np.random.default_rng(4).integers(0, 7, (BATCH, 5))


def mlp() -> Model:
    w1, b1, w2, b2 = arrays(0, (5, 6), (6,), (6, 3), (3,))

    def loss(p, x, y):
        return cross_entropy(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], y)

    return Model(loss, {"w1": w1, "b1": b1, "w2": w2, "b2": b2}, (VECTORS, LABELS))


def l2_inside() -> Model:
    inner = mlp()

    def loss(p, x, y):
        return inner.loss(p, x, y) + 0.1 * sum(jnp.sum(w * w) for w in jax.tree.leaves(p))

    return inner._replace(loss=loss)


def read_twice() -> Model:
    w, out = arrays(1, (5, 6), (6, 3))

    def loss(p, x, y):
        hidden = jnp.tanh(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["w"])
        return cross_entropy(hidden @ p["out"], y)

    return Model(loss, {"w": w, "out": out}, (VECTORS, LABELS))


def cnn(**options: Any) -> Model:
    groups = options.get("feature_group_count", 1)
    k, b, out = arrays(2, (3, 2, 4 // groups, 8), (8,), (8, 3))

    def loss(p, x, y):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x[None], p["k"], dimension_numbers=numbers, **options)[0]
        h = jax.nn.relu(h + p["b"][None, None])
        return cross_entropy(h.mean((0, 1)) @ p["out"], y)

    return Model(loss, {"k": k, "b": b, "out": out}, (IMAGES, LABELS))


def cnn_1d_and_3d() -> Model:
    one, three, out = arrays(3, (8, 4, 3), (3, 1, 2, 2, 1), (3, 3))

    def loss(p, x, y):
        x = jnp.swapaxes(x.reshape(1, 56, 4), 1, 2)  # features first
        h = lax.conv_general_dilated(
            x, p["one"], (2,), "VALID", dimension_numbers=("NCH", "OIH", "NCH")
        )
        h = jnp.tanh(h)[0].reshape(1, 1, 8, 27 // 9, 9)
        h = lax.conv_general_dilated(
            h, p["three"], (1, 1, 1), "SAME", dimension_numbers=("NCDHW", "OIDHW", "NCDHW")
        )
        return cross_entropy(jnp.tanh(h).mean((0, 2, 3, 4)) @ p["out"], y)

    return Model(loss, {"one": one, "three": three, "out": out}, (IMAGES, LABELS))


def lenet() -> Model:
    shapes = (3, 3, 4, 6), (6,), (2, 2, 6, 5), (5,), (5, 6), (6,), (6, 3), (3,)
    params = [0.5 * x for x in arrays(4, *shapes)]

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")

    def loss(p, x, y):
        for k, b in ((p[0], p[1]), (p[2], p[3])):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(x[None], k, (1, 1), "SAME", dimension_numbers=numbers)[0]
            x = pool(jax.nn.relu(x + b[None, None]))
        hidden = jax.nn.relu(x[0, 0] @ p[4] + p[5])
        return cross_entropy(hidden @ p[6] + p[7], y)

    return Model(loss, params, (IMAGES, LABELS))


def lstm() -> Model:
    wx, wh, b, h0, out = arrays(5, (5, 16), (4, 16), (16,), (4,), (4, 3))

    def loss(p, xs, y):
        def step(carry, x):
            c, h = carry
            i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        (_, h), hs = lax.scan(step, (jnp.zeros_like(p["h0"]), p["h0"]), xs)
        return cross_entropy((h + hs.mean(0)) @ p["out"], y)

    return Model(loss, {"wx": wx, "wh": wh, "b": b, "h0": h0, "out": out}, (SEQUENCES, LABELS))


def gru_with_counter() -> Model:
    w, u, out = arrays(6, (5, 12), (4, 12), (4, 3))

    def loss(p, xs, y):
        def step(carry, x):
            i, h = carry
            z, r, n = jnp.split(x @ p["w"], 3)
            uz, ur, un = jnp.split(h @ p["u"], 3)
            z = jax.nn.sigmoid(z + uz)
            h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + ur) * un) + z * h
            return (i + 1, jnp.where(i < 3, h, 0.5 * h)), None

        zeros = jnp.zeros(4, p["u"].dtype)
        (_, h), _ = lax.scan(step, (jnp.int32(0), zeros), xs, reverse=True, unroll=2)
        return cross_entropy(h @ p["out"], y)

    return Model(loss, {"w": w, "u": u, "out": out}, (SEQUENCES, LABELS))


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale[None]


def transformer_tied() -> Model:
    shapes = (7, 8), (9, 8), (8,), (8, 3, 2, 4), (2, 4, 8), (8,), (8, 12), (12, 8)
    names = "embedding", "position", "norm1", "qkv", "merge", "norm2", "up", "down"
    params = dict(zip(names, arrays(7, *shapes), strict=True))

    def loss(p, tokens):
        x = p["embedding"][tokens] + p["position"][:5]
        q, k, v = jnp.moveaxis(jnp.einsum("td,dnhk->tnhk", rms_norm(x, p["norm1"]), p["qkv"]), 1, 0)
        scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), jnp.einsum("thk,shk->hts", q, k), -1e9)
        mixed = jnp.einsum("hts,shk->thk", jax.nn.softmax(scores), v)
        x = x + jnp.einsum("thk,hkd->td", mixed, p["merge"])
        x = x + jax.nn.gelu(rms_norm(x, p["norm2"]) @ p["up"]) @ p["down"]
        return jnp.mean(cross_entropy((x @ p["embedding"].T)[:-1], tokens[1:]))

    return Model(loss, params, (TOKENS,))


def scanned_layers_with_remat() -> Model:
    w, b, scale, out, shared = arrays(8, (3, 5, 5), (3, 5), (3, 5), (5, 3), (5, 5))

    def loss(p, x, y):
        @jax.checkpoint
        def layer(x, own):
            h = jnp.tanh(rms_norm(x, own["scale"]) @ own["w"].T + own["b"][None])
            return x + h @ p["shared"], None

        x, _ = lax.scan(layer, x, p["layers"])
        return cross_entropy(x.mean(0) @ p["out"], y)

    layers = {"w": w, "b": b, "scale": scale}
    return Model(loss, {"layers": layers, "out": out, "shared": shared}, (SEQUENCES, LABELS))


def scan_in_scan() -> Model:
    w, u, h0 = arrays(9, (2, 5, 4), (2, 4, 4), (2, 4))
    (out,) = arrays(10, (4, 3))

    def loss(p, xs, y):
        def layer(total, own):
            def step(h, x):
                return jnp.tanh(x @ own["w"] + h @ own["u"]), h

            h, hs = lax.scan(step, own["h0"], xs)
            return total + h + hs.mean(0), None

        total, _ = lax.scan(layer, jnp.zeros(4, xs.dtype), p["layers"])
        return cross_entropy(total @ p["out"], y)

    return Model(loss, {"layers": {"w": w, "u": u, "h0": h0}, "out": out}, (SEQUENCES, LABELS))


def mixture_of_experts() -> Model:
    router, experts, first, out = arrays(11, (5, 3), (3, 5, 4), (3, 4, 4), (4, 3))

    def loss(p, x, y):
        chances = jax.nn.softmax(x @ p["router"])
        chosen = jnp.argmax(chances, -1)  # one for each token
        h = jnp.tanh(jnp.einsum("td,tdk->tk", x, p["experts"][chosen]))
        h = h * jnp.take_along_axis(chances, chosen[:, None], -1)
        h = jnp.tanh(h.mean(0) @ p["first"][chosen[0]])  # one for the example
        return cross_entropy(h @ p["out"], y)

    params = {"router": router, "experts": experts, "first": first, "out": out}
    return Model(loss, params, (SEQUENCES, LABELS))


def normalized_layers() -> Model:
    scale, shift, v, g, out, pos = arrays(12, (8,), (8,), (5, 8), (8,), (8, 3), (4, 8))

    def loss(p, x, y):
        w = p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True) * p["g"][None]
        h = x @ w + p["pos"]
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
        groups = (h * p["scale"][None] + p["shift"][None]).reshape(4, 2, 4)
        groups = groups / jnp.sqrt(groups.var((0, 2), keepdims=True) + 1e-5)
        return cross_entropy(jnp.tanh(groups.reshape(4, 8)).mean(0) @ p["out"], y)

    params = {"scale": scale + 1, "shift": shift, "v": v, "g": g + 1, "out": out, "pos": pos}
    return Model(loss, params, (SEQUENCES, LABELS))


@jax.custom_vjp
def sign_straight_through(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sign(w) * x


sign_straight_through.defvjp(
    lambda w, x: (jnp.sign(w) * x, (w, x)), lambda kept, g: (g * kept[1], g * jnp.sign(kept[0]))
)


def without_rules() -> Model:
    s, w, out, gate, unused = arrays(13, (5,), (5, 4), (4, 3), (5,), (2,))

    def loss(p, x, y):
        x = jnp.sort(sign_straight_through(p["s"], x) + lax.cumsum(p["gate"] * x))
        h = lax.cond(x[0] > 0, lambda: jnp.tanh(x @ p["w"]), lambda: x @ p["w"])
        h = lax.fori_loop(0, 2, lambda i, h: h + jnp.sin(h) * p["out"][i].sum(), h)
        return cross_entropy(h @ lax.stop_gradient(p["out"]) + h @ p["out"], y)

    params = {"s": s, "w": w, "out": out, "gate": gate, "unused": unused}
    return Model(loss, params, (VECTORS, LABELS))


def lookups() -> Model:
    table, out = arrays(14, (7, 4), (4, 3))

    def loss(p, tokens, y):
        one_hot = jax.nn.one_hot(tokens, 7, dtype=p["table"].dtype) @ p["table"]
        taken = jnp.take(p["table"], tokens, axis=0, mode="clip")
        h = jnp.tanh(one_hot + taken).mean(0) + p["table"][tokens[0]]
        return cross_entropy(h @ p["out"] + h @ p["table"][:3].T, y)

    return Model(loss, {"table": table, "out": out}, (TOKENS, LABELS))


def constant_loss() -> Model:
    (w,) = arrays(15, (5, 3))
    return Model(lambda p, x: jnp.sum(p["w"] ** 2), {"w": w}, (VECTORS,))


def dropout() -> Model:
    inner = mlp()

    def loss(p, x, y, seed):
        kept = jax.random.bits(jax.random.key(seed), x.shape, jnp.uint8) < 128
        return inner.loss(p, jnp.where(kept, x, 0), y)

    return Model(loss, inner.params, (*inner.batch, np.arange(BATCH)))
