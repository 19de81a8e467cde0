"""Per-example clipping against an ordinary gradient of the mean loss, and against the peers.

    python -m benchmarks.per_example [--models mlp ...] [--peers] [--repeats 9]

Each row is timed next to the ordinary gradient, the two alternating in one process; the figure is
the median of the ratios. Memory is what XLA's own analysis calls temporary. Trace time is that of
`jax.jit(...).trace`, against that of `jax.grad`. Peers that are not installed are named as absent.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxclip import per_example


class Model(NamedTuple):
    """A loss of one example, its parameters and a batch."""

    loss: Callable
    params: Any
    batch: tuple
    time_limit: float
    memory_limit: float


def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A kernel and a bias."""
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def apply(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A dense layer."""
    return x @ layer["kernel"] + layer["bias"]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one prediction."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def mlp(widths: tuple[int, ...], batch: int, time_limit: float) -> Model:
    """A perceptron on vectors of 784."""
    keys = jax.random.split(jax.random.key(0), len(widths) + 1)
    layers = [dense(k, i, o) for k, i, o in zip(keys, widths[:-1], widths[1:], strict=False)]

    def loss(layers: list, x: jax.Array, label: jax.Array) -> jax.Array:
        for layer in layers[:-1]:
            x = jax.nn.relu(apply(layer, x))
        return cross_entropy(apply(layers[-1], x), label)

    x = jax.random.normal(keys[-1], (batch, widths[0]))
    return Model(loss, layers, (x, jnp.arange(batch) % widths[-1]), time_limit, 1.5)


def cnn(batch: int = 256) -> Model:
    """Two convolutions of 3x3, each with GroupNorm and a max pool, and two dense layers."""
    keys = jax.random.split(jax.random.key(0), 5)

    def conv(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (3, 3, inputs, outputs)) / (9 * inputs) ** 0.5
        zeros, ones = jnp.zeros(outputs), jnp.ones(outputs)
        return {"kernel": kernel, "bias": zeros, "scale": ones, "shift": zeros}

    params = {
        "convs": [conv(keys[0], 1, 16), conv(keys[1], 16, 32)],
        "dense": [dense(keys[2], 7 * 7 * 32, 64), dense(keys[3], 64, 10)],
    }

    def loss(params: dict, x: jax.Array, label: jax.Array) -> jax.Array:
        for layer in params["convs"]:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(
                x[None], layer["kernel"], (1, 1), "SAME", dimension_numbers=numbers
            )[0]
            x = x + layer["bias"]
            groups = x.reshape(*x.shape[:2], 4, -1)
            mean = groups.mean((0, 1, 3), keepdims=True)
            groups = (groups - mean) * lax.rsqrt(groups.var((0, 1, 3), keepdims=True) + 1e-5)
            x = jax.nn.relu(groups.reshape(x.shape) * layer["scale"] + layer["shift"])
            x = lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        hidden = jax.nn.relu(apply(params["dense"][0], x.reshape(-1)))
        return cross_entropy(apply(params["dense"][1], hidden), label)

    x = jax.random.normal(keys[4], (batch, 28, 28, 1))
    return Model(loss, params, (x, jnp.arange(batch) % 10), 1.8, 2.0)


def lstm(batch: int = 64, width: int = 128, steps: int = 64) -> Model:
    """An LSTM by scan, and a dense layer on its last state."""
    keys = jax.random.split(jax.random.key(0), 4)
    cell = {
        **dense(keys[0], width, 4 * width),
        "hidden": dense(keys[1], width, 4 * width)["kernel"],
    }
    params = {"cell": cell, "out": dense(keys[2], width, 10)}

    def loss(params: dict, x: jax.Array, label: jax.Array) -> jax.Array:
        def step(carry: tuple, x: jax.Array) -> tuple:
            c, h = carry
            gates = apply(params["cell"], x) + h @ params["cell"]["hidden"]
            i, f, g, o = jnp.split(gates, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

        zeros = jnp.zeros(width)
        (_, h), _ = lax.scan(step, (zeros, zeros), x)
        return cross_entropy(apply(params["out"], h), label)

    x = jax.random.normal(keys[3], (batch, steps, width))
    return Model(loss, params, (x, jnp.arange(batch) % 10), 2.0, 2.5)


def transformer(
    batch: int = 16, width: int = 256, layers: int = 4, length: int = 128, vocabulary: int = 256
) -> Model:
    """A causal language model with 4 heads a layer and tied embeddings."""
    keys = iter(jax.random.split(jax.random.key(0), 8 * layers + 4))

    def layer() -> dict[str, Any]:
        return {
            "norm1": jnp.ones(width),
            "norm2": jnp.ones(width),
            "qkv": [dense(next(keys), width, width) for _ in range(3)],
            "out": dense(next(keys), width, width),
            "up": dense(next(keys), width, 4 * width),
            "down": dense(next(keys), 4 * width, width),
        }

    params = {
        "embedding": jax.random.normal(next(keys), (vocabulary, width)) / width**0.5,
        "position": jax.random.normal(next(keys), (length, width)) / width**0.5,
        "layers": [layer() for _ in range(layers)],
        "norm": jnp.ones(width),
    }

    def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def attention(layer: dict, x: jax.Array) -> jax.Array:
        q, k, v = (apply(one, x).reshape(length, 4, width // 4) for one in layer["qkv"])
        scores = jnp.einsum("thd,shd->hts", q, k) / (width // 4) ** 0.5
        causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        return apply(layer["out"], jnp.einsum("hts,shd->thd", weights, v).reshape(length, width))

    def loss(params: dict, tokens: jax.Array) -> jax.Array:
        x = params["embedding"][tokens] + params["position"]
        for layer in params["layers"]:
            x = x + attention(layer, rms_norm(x, layer["norm1"]))
            hidden = jax.nn.gelu(apply(layer["up"], rms_norm(x, layer["norm2"])))
            x = x + apply(layer["down"], hidden)
        logits = rms_norm(x, params["norm"]) @ params["embedding"].T
        return jnp.mean(cross_entropy(logits[:-1], tokens[1:]))

    tokens = jax.random.randint(next(keys), (batch, length), 0, vocabulary)
    return Model(loss, params, (tokens,), 1.6, 2.0)


MODELS: dict[str, Callable[[], Model]] = {
    "mlp-128, 256": lambda: mlp((784, 128, 10), 256, 1.25),
    "mlp-128, 1024": lambda: mlp((784, 128, 10), 1024, 1.25),
    "mlp-512-512, 1024": lambda: mlp((784, 512, 512, 10), 1024, 1.15),
    "cnn, 256": cnn,
    "lstm, 64": lstm,
    "transformer, 16": transformer,
}


def ordinary(model: Model) -> Callable:
    """The gradient of the mean loss."""

    def mean_loss(params: Any, *batch: Any) -> jax.Array:
        return jnp.mean(jax.vmap(model.loss, in_axes=(None, *(0 for _ in batch)))(params, *batch))

    return jax.grad(mean_loss)


def ours(model: Model) -> Callable:
    """The mean of the clipped gradients."""
    clip = per_example.clipped_grad(model.loss, 1.0)
    return lambda params, *batch: clip(params, *batch)[0]


def optax_vmap(model: Model) -> Callable:
    """Optax: the gradient of every example by `vmap`, then clipped."""

    def clip(params: Any, *batch: Any) -> Any:
        axes = (None, *(0 for _ in batch))
        grads = jax.vmap(jax.grad(model.loss), in_axes=axes)(params, *batch)
        leaves, treedef = jax.tree.flatten(grads)
        summed, _ = optax.per_example_global_norm_clip(leaves, 1.0)
        return jax.tree.map(lambda g: g / batch[0].shape[0], treedef.unflatten(summed))

    return clip


def jax_privacy(model: Model) -> Callable:
    """jax-privacy's `clipped_grad`, with the batch dimension dropped."""
    clipping = __import__("jax_privacy.clipping", fromlist=["clipping"])
    places = tuple(range(1, 1 + len(model.batch)))
    return clipping.clipped_grad(
        model.loss,
        l2_clip_norm=1.0,
        batch_argnums=places,
        keep_batch_dim=False,
        normalize_by=float(model.batch[0].shape[0]),
    )


def compiled(function: Callable, model: Model) -> tuple[Callable, int, float]:
    """The compiled function, its temporary bytes, and the seconds that tracing took."""
    jitted = jax.jit(function)
    start = time.perf_counter()
    traced = jitted.trace(model.params, *model.batch)
    seconds = time.perf_counter() - start
    program = traced.lower().compile()
    analysis = program.memory_analysis()
    assert analysis is not None  # this backend has one
    return program, analysis.temp_size_in_bytes, seconds


def ratio(program: Callable, against: Callable, model: Model, repeats: int) -> tuple[float, float]:
    """The median of the paired ratios of time, and the median milliseconds of the second."""
    pairs = []
    for _ in range(repeats + 1):
        pair = []
        for function in (program, against):
            start = time.perf_counter()
            jax.block_until_ready(function(model.params, *model.batch))
            pair.append(time.perf_counter() - start)
        pairs.append(pair)
    pairs = pairs[1:]
    return statistics.median(a / b for a, b in pairs), 1e3 * statistics.median(b for _, b in pairs)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="which rows, by prefix")
    parser.add_argument("--peers", action="store_true", help="the peers too, which take long")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[Model], Callable]] = {"jaxclip": ours}
    if arguments.peers:
        print("Opacus is absent from the table: it has no JAX models.")
        ways["optax vmap"] = optax_vmap
        if importlib.util.find_spec("jax_privacy") is None:
            print("jax-privacy is not installed: absent from the table.")
        else:
            ways["jax-privacy"] = jax_privacy
    print("| model, batch | ordinary | way | time | memory | trace | limits |")
    print("|---|---|---|---|---|---|---|")
    for name, make in MODELS.items():
        if not any(name.startswith(prefix) for prefix in arguments.models):
            continue
        model = make()
        base, base_bytes, base_trace = compiled(ordinary(model), model)
        for way, function in ways.items():
            program, own_bytes, own_trace = compiled(function(model), model)
            times, milliseconds = ratio(program, base, model, arguments.repeats)
            print(
                f"| {name} | {milliseconds:.1f} ms, {base_bytes / 1e6:.1f} MB | {way} "
                f"| {times:.2f}x | {own_bytes / max(base_bytes, 1):.2f}x, {own_bytes / 1e6:.1f} MB "
                f"| {own_trace / base_trace:.1f}x | {model.time_limit}x, {model.memory_limit}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
