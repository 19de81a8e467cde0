"""Small models of every kind."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .frameworks import equinox, haiku, linen, nnx_scanned
from .models import (
    Model,
    cnn,
    cnn_1d_and_3d,
    constant_loss,
    dropout,
    gru_with_counter,
    l2_inside,
    lenet,
    lookups,
    lstm,
    mixture_of_experts,
    mlp,
    normalized_layers,
    read_twice,
    scan_in_scan,
    scanned_layers_with_remat,
    transformer_tied,
    without_rules,
)

ZOO: dict[str, Callable[[], Model]] = {
    "mlp": mlp,
    "l2 inside": l2_inside,
    "read twice": read_twice,
    "cnn": lambda: cnn(window_strides=(1, 1), padding="SAME"),
    "cnn strided dilated": lambda: cnn(window_strides=(2, 1), padding="VALID", rhs_dilation=(1, 2)),
    "cnn transposed": lambda: cnn(
        window_strides=(1, 1), padding=((1, 2), (0, -1)), lhs_dilation=(2, 1)
    ),
    "cnn grouped": lambda: cnn(window_strides=(1, 2), padding="SAME", feature_group_count=2),
    "cnn depthwise": lambda: cnn(window_strides=(1, 1), padding="SAME", feature_group_count=4),
    "cnn 1d and 3d": cnn_1d_and_3d,
    "lenet": lenet,
    "lstm": lstm,
    "gru with counter": gru_with_counter,
    "transformer tied": transformer_tied,
    "scanned layers with remat": scanned_layers_with_remat,
    "scan in scan": scan_in_scan,
    "mixture of experts": mixture_of_experts,
    "normalized layers": normalized_layers,
    "without rules": without_rules,
    "lookups": lookups,
    "constant loss": constant_loss,
    "linen": linen,
    "nnx scanned": nnx_scanned,
    "equinox": equinox,
    "haiku": haiku,
    "dropout": dropout,
}


def cast_first(model: Model) -> tuple[Any, tuple]:
    """The parameters in float32, and the first example of the batch."""

    def one(x):
        return jnp.asarray(x, jnp.float32 if np.asarray(x).dtype.kind == "f" else jnp.int32)

    return jax.tree.map(one, model.params), tuple(one(x[0]) for x in model.batch)
