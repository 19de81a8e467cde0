"""The rows of the table of benchmarks: what is measured, against what, and what to reach."""

import dataclasses
import functools
import importlib.util
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxclip
from benchmarks.paired import seconds

Step = Callable[[], object]
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
MATRICES = [(2048, 1024)] * 20 + [(1024,)] * 20  # 42 M parameters
PAIRS = {
    "global": (jaxclip.clip_by_global_norm, optax.clip_by_global_norm, {"f32": 1.02, "bf16": 0.3}),
    "units of AGC": (
        lambda limit: jaxclip.adaptive_grad_clip(0.01 * limit),
        lambda limit: optax.adaptive_grad_clip(0.01 * limit),
        {"f32": 0.95, "bf16": 0.4},
    ),
    "block RMS": (jaxclip.clip_by_block_rms, optax.clip_by_block_rms, {"f32": 0.95, "bf16": 0.4}),
    "value": (jaxclip.clip_by_value, optax.clip, {"f32": 1.5, "bf16": 1.5}),
}
ADAPTIVE = {
    "autoclip": jaxclip.autoclip,
    "zclip": jaxclip.zclip,
    "clip_by_quantile": jaxclip.clip_by_quantile,
    "drop_spikes": lambda: jaxclip.drop_spikes(4.0),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured: the median, the quartiles of the pairs, and what else is worth a word."""

    median: float
    low: float
    high: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its name, what its number is, how to measure it, and the most it should be."""

    name: str
    unit: str
    measure: Callable[[], Result]
    target: float | None = None


def rows() -> list[Row]:
    """All rows, in the order of the table."""
    return [*_limits(), *_steps(), *_adaptive(), *_compiling(), *_growth(), _small(), *_others()]


def paired(ours: Step, theirs: Step, rounds: int = 41, note: str = "") -> Result:
    """Times two sides in turn, and returns the median of the ratios with its quartiles."""
    for side in (ours, theirs):
        side()
    ratios = []
    for turn in range(rounds):
        order = (ours, theirs) if turn % 2 else (theirs, ours)
        taken = {side: seconds(side) for side in order}
        ratios.append(taken[ours] / taken[theirs])
    low, median, high = statistics.quantiles(ratios, n=4)
    return Result(median, low, high, note)


def step(tx: optax.GradientTransformation | None, dtype: Any, shapes: list) -> tuple[Step, float]:
    """A training step of SGD with donated parameters, and its temporary bytes by those of them."""
    optimizer = optax.chain(tx, optax.sgd(1e-3)) if tx else optax.sgd(1e-3)
    keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
    arrays = [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes * 2, strict=True)]
    params, gradient = arrays[: len(shapes)], arrays[len(shapes) :]
    held = [params, optimizer.init(params)]

    def update(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*held, gradient).compile()
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else math.nan
    size = sum(x.nbytes for x in gradient)

    def once() -> None:
        held[:] = compiled(*held, gradient)
        jax.block_until_ready(held)

    return once, temporary / size


def _pair(clips: tuple, dtype: Any, shapes: list) -> Result:
    ours, theirs = (step(tx, dtype, shapes)[0] for tx in clips)
    return paired(ours, theirs)


def _limits() -> Iterator[Row]:
    """What the machine can do at most."""

    def bandwidth() -> Result:
        x = jnp.ones(64 * 2**20 // 4)
        copy = jax.jit(lambda x: -x, donate_argnums=0)
        held = [copy(x)]

        def once() -> None:
            held[0] = jax.block_until_ready(copy(held[0]))

        return _rates(once, 2 * 64 * 2**20 / 1e9)

    def products() -> Result:
        x = jnp.ones((2048, 2048))
        multiply = jax.jit(jnp.matmul)
        return _rates(lambda: jax.block_until_ready(multiply(x, x)), 2 * 2048**3 / 1e9)

    yield Row("limit: memory, read and written", "GB/s", bandwidth)
    yield Row("limit: matrix products in f32", "Gflop/s", products)


def _rates(once: Step, amount: float) -> Result:
    once()
    rates = [amount / seconds(once) for _ in range(41)]
    low, median, high = statistics.quantiles(rates, n=4)
    return Result(median, low, high, f"best {max(rates):.0f}")


def _steps() -> Iterator[Row]:
    for name, (ours, theirs, targets) in PAIRS.items():
        for kind, dtype in DTYPES.items():

            def measure(ours: Any = ours, theirs: Any = theirs, dtype: Any = dtype) -> Result:
                own, temporary = step(ours(0.5), dtype, MATRICES)
                other, their_temporary = step(theirs(0.5), dtype, MATRICES)
                note = f"temporary {temporary:.1%} of the parameters, Optax {their_temporary:.1%}"
                return paired(own, other, note=note)

            yield Row(f"clip {name} + SGD, {kind}", "x Optax", measure, targets[kind])

    def beside_sgd(dtype: Any) -> Result:
        return _pair((jaxclip.clip_by_global_norm(0.5), None), dtype, MATRICES)

    for kind, target in (("f32", 4 / 3 * 1.1), ("bf16", 1.5)):
        run = functools.partial(beside_sgd, DTYPES[kind])
        yield Row(f"clip global + SGD, {kind}", "x SGD", run, target)


def _adaptive() -> Iterator[Row]:
    for name, make in ADAPTIVE.items():

        def measure(make: Callable[[], Any] = make) -> Result:
            sides = (make(), jaxclip.clip_by_global_norm(0.5))
            return _pair(sides, jnp.float32, MATRICES)

        yield Row(f"adaptive {name} + SGD, f32", "x clip_by_global_norm", measure, 1.05)


def _compiling() -> Iterator[Row]:
    def measure(leaves: int, compiles: bool) -> Result:
        shapes = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * leaves
        clips = (jaxclip.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5))

        def side(tx: optax.GradientTransformation) -> float:
            optimizer = optax.chain(tx, optax.sgd(0.1))
            state = jax.eval_shape(optimizer.init, shapes)
            jax.clear_caches()
            start = time.process_time()
            traced = jax.jit(lambda g, s: optimizer.update(g, s)).trace(shapes, state)
            lowered = traced.lower()
            if not compiles:
                return time.process_time() - start
            start = time.process_time()
            lowered.compile()
            return time.process_time() - start

        ratios = [side(clips[0]) / side(clips[1]) for _ in range(3)]
        return Result(statistics.median(ratios), min(ratios), max(ratios), "CPU time, 3 pairs")

    for leaves in (100, 400, 1000):
        for compiles, target in ((True, 1.0), (False, 1.2)):
            name = f"{'compile' if compiles else 'trace and lower'} {leaves} leaves of 32 x 32"
            yield Row(name, "x Optax", functools.partial(measure, leaves, compiles), target)


def _growth() -> Iterator[Row]:
    for power in (4, 5, 6, 7, 8):

        def measure(power: int = power) -> Result:
            shapes = [(10**power // 1000, 1000)]
            clips = (jaxclip.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5))
            return _pair(clips, jnp.float32, shapes)

        yield Row(f"growth: clip global + SGD, 1e{power} parameters", "x Optax", measure, 1.02)


def _small() -> Row:
    def measure() -> Result:
        clips = (jaxclip.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5))
        return _pair(clips, jnp.float32, [(32, 32)] * 2000)

    return Row("clip global + SGD, 2000 leaves of 32 x 32", "x Optax", measure, 0.9)


def _others() -> Iterator[Row]:
    def imports() -> Result:
        def process(code: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            return time.perf_counter() - start

        both = "import optax, jaxclip"
        gaps = [1e3 * (process(both) - process("import optax")) for _ in range(11)]
        low, median, high = statistics.quantiles(gaps, n=4)
        return Result(median, low, high)

    yield Row("import jaxclip beyond import optax", "ms", imports, 60)
    yield Row("PyTorch: clip global + SGD, f32", "x PyTorch", _torch, 1.0)


def _torch() -> Result:
    if importlib.util.find_spec("torch") is None:
        return Result(math.nan, math.nan, math.nan, "PyTorch is not installed")
    torch = importlib.import_module("torch")
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in MATRICES]
    gradient = [torch.randn(shape) for shape in MATRICES]
    sgd = torch.optim.SGD(params, lr=1e-3)
    for p, g in zip(params, gradient, strict=True):
        p.grad = g

    def theirs() -> None:
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        sgd.step()

    return paired(step(jaxclip.clip_by_global_norm(0.5), jnp.float32, MATRICES)[0], theirs)
