"""The cost of a clip: beside Optax's, and beside the SGD that follows it.

    python -m benchmarks.clips

Of the methods with a memory also the time of a step on a small gradient, where it is the state that
takes it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import jaxclip
from benchmarks.paired import ratio, seconds

SIZES = [(4096, 1024)] * 6 + [(1024,)] * 12  # 25 M parameters
PEERS = {
    "clip_by_global_norm": (jaxclip.clip_by_global_norm, optax.clip_by_global_norm),
    "clip_by_block_rms": (jaxclip.clip_by_block_rms, optax.clip_by_block_rms),
    "adaptive_grad_clip": (jaxclip.adaptive_grad_clip, optax.adaptive_grad_clip),
    "clip_by_value": (jaxclip.clip_by_value, optax.clip),
}
REMEMBERING = {
    "autoclip(window=1024)": jaxclip.autoclip(),
    "clip_by_history(window=128)": jaxclip.clip_by_history(),
    "clip_by_quantile": jaxclip.clip_by_quantile(),
    "zclip": jaxclip.zclip(),
    "clip_by_global_norm": jaxclip.clip_by_global_norm(1.0),
}


def main() -> None:
    """Prints both tables."""
    print(f"{'method':24} {'dtype':9} {'/ Optax':>8} {'with SGD / SGD':>15} {'Optax so':>9}")
    for dtype in (jnp.float32, jnp.bfloat16):
        keys = jax.random.split(jax.random.key(0), len(SIZES))
        params = [jax.random.normal(k, s, dtype) for k, s in zip(keys, SIZES, strict=True)]
        plain = step(optax.sgd(0.1), params)
        for name, (ours, theirs) in PEERS.items():
            clips = ours(0.5), theirs(0.5)
            alone = [step(clip, params) for clip in clips]
            chained = [step(optax.chain(clip, optax.sgd(0.1)), params) for clip in clips]
            print(
                f"{name:24} {jnp.dtype(dtype).name:9} {ratio(alone[0], alone[1]):8.2f} "
                f"{ratio(chained[0], plain):15.2f} {ratio(chained[1], plain):9.2f}"
            )
    print(f"\n{'a step on 8 numbers':28} microseconds, the least of 200")
    for name, tx in REMEMBERING.items():
        print(f"{name:28} {1e6 * least(step(tx, [jnp.ones(8)])):8.1f}")


def least(side: Callable[[], object]) -> float:
    """Returns the least of 200 times, after a first call that compiles."""
    side()
    return min(seconds(side) for _ in range(200))


def step(tx: optax.GradientTransformation, params: list) -> Callable[[], object]:
    """Returns a call that updates once, with the parameters for a gradient."""
    update = jax.jit(tx.update)
    state = tx.init(params)
    return lambda: jax.block_until_ready(update(params, state, params))


if __name__ == "__main__":
    main()
