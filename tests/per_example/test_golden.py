"""The per-example norms of Opacus and of fastDP, from their own code."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxclip import per_example

from .helpers import FAST, distance

# What the references gave does not depend on the Python; the oldest one runs them.
pytestmark = pytest.mark.slow

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
OPACUS = json.loads((GOLDEN / "opacus.json").read_text())["cases"]
FASTDP = json.loads((GOLDEN / "ghost_norm_fastdp.json").read_text())["cases"]


def torch_conv(x, kernel, pad, groups=1, stride=1):
    """Convolution in the layouts of torch, in one or two dimensions."""
    numbers = ("NCHW", "OIHW", "NCHW") if x.ndim == 3 else ("NCH", "OIH", "NCH")
    padding = [(pad, pad)] * (x.ndim - 1)
    return lax.conv_general_dilated(
        x[None],
        kernel,
        (stride,) * (x.ndim - 1),
        padding,
        dimension_numbers=numbers,
        feature_group_count=groups,
    )[0]


def normalized(x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5)


def opacus_loss(kind, out_shape):
    def loss(params, x, out_weights):
        weight, bias = params["l.weight"], params["l.bias"]
        if kind.startswith("linear"):
            y = x @ weight.T
            y = y + jnp.broadcast_to(bias, y.shape)
        elif kind == "layernorm":
            y = normalized(x) * weight[None] + bias[None]
        else:
            # The file has no padding and stride: these give outputs of the recorded size.
            pad, stride = (1, 1) if kind == "conv2d" else (0, 2)
            y = torch_conv(x, weight, pad, stride=stride)
            assert y.shape == out_shape
            y = y + jnp.expand_dims(bias, range(1, y.ndim))
        return jnp.sum(y * out_weights)

    return loss


@pytest.mark.parametrize("form", ["auto", "gram"])
@pytest.mark.parametrize("case", [c for c in OPACUS if "kind" in c], ids=lambda c: c["kind"])
def test_opacus_norms(case, form):
    with jax.enable_x64(True):
        params = {k: jnp.array(v) for k, v in case["params"].items()}
        x, out_weights = jnp.array(case["x"]), jnp.array(case["out_weights"])
        loss = opacus_loss(case["kind"], out_weights.shape[1:])
        pooled, apart = (
            per_example.norms(loss, blocks=blocks, form=form) for blocks in ("whole", "leaf")
        )
        run = jax.jit(lambda *x: (pooled(*x), apart(*x)), compiler_options=FAST)
        whole, leaf = run(params, x, out_weights)
        assert distance(whole, np.array(case["autograd_norm"])) < 1e-12
        for key, wanted in case["autograd_norm_per_param"].items():
            assert distance(leaf[key], np.array(wanted)) < 1e-12
        if not isinstance(case["opacus_ghost_norm"], str):  # that of 4 dimensions is an error
            assert distance(whole, np.array(case["opacus_ghost_norm"])) < 1e-12


@pytest.mark.parametrize("case", [c for c in OPACUS if "kind" not in c], ids=lambda c: c["fn"])
def test_opacus_clipped_sums(case):
    with jax.enable_x64(True):
        x, out_weights = jnp.array(case["x"]), jnp.array(case["out_weights"])
        params = {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}

        def loss(params, x, out_weights):
            return jnp.sum((params["weight"] @ x + params["bias"]) * out_weights)

        limit = case["max_grad_norm"]
        if isinstance(limit, list):
            limit = dict(zip(("weight", "bias"), limit, strict=True))
        gradient, _ = per_example.clipped_grad(loss, limit, reduce="sum")(params, x, out_weights)
        found = [gradient["weight"], gradient["bias"]]
        # Opacus divides by the norm plus 1e-6.
        for one, wanted in zip(found, case["summed"], strict=True):
            assert distance(one, np.array(wanted)) < 1e-5


def fastdp_loss(layer):
    def loss(params, a, b):
        if layer == "linear":
            y = a @ params["weight"].T
            y = y + jnp.broadcast_to(params["bias"], y.shape)
        elif layer == "layernorm":
            y = normalized(a) * params["weight"][None] + params["bias"][None]
        elif layer == "embedding":
            y = params["weight"][a]
        else:
            y = torch_conv(a, params["weight"], 0, groups=2) + params["bias"][:, None, None]
        return jnp.sum(y * b)

    return loss


def test_fastdp_norms():
    with jax.enable_x64(True):
        for case in FASTDP:
            layer, b = case["layer"], jnp.array(case["B"])
            a = jnp.array(case["ids"], jnp.int32) if layer == "embedding" else jnp.array(case["A"])
            features = b.shape[1] if layer == "conv2d" else b.shape[-1]
            shapes = {"linear": (features, a.shape[-1]), "layernorm": (features,)}
            shapes |= {"embedding": (10, features), "conv2d": (features, 1, 2, 2)}
            params = {"weight": jnp.zeros(shapes[layer])}
            if layer != "embedding":
                params["bias"] = jnp.zeros(features)
            forms = ("auto", "gram", "matrices")
            norms = [
                per_example.norms(fastdp_loss(layer), blocks="leaf", form=form) for form in forms
            ]
            run = jax.jit(lambda *x, norms=norms: [f(*x) for f in norms], compiler_options=FAST)
            for found in run(params, a, b):
                if layer == "conv2d":
                    exact = np.array(case["autograd"])
                    assert distance(found["weight"], exact[:, 0]) < 1e-12
                    assert distance(found["bias"], exact[:, 1]) < 1e-12
                    # fastDP's own norm ignores that the convolution is grouped.
                    assert distance(np.array(case["weight_norm"]), exact[:, 0]) > 0.1
                else:
                    assert distance(found["weight"], np.array(case["weight_norm"])) < 1e-12
