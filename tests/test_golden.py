"""Every method against inputs and outputs of its reference's own code, in `tests/golden/`.

Where a reference has a bug the test pins the right answer, and says what differs.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import measures, shrinks, thresholds

# What the references gave does not depend on the Python; the oldest one runs them.
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "golden"
WORDS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cases(file, **wanted):
    found = [
        case
        for case in json.loads((FOLDER / f"{file}.json").read_text())["cases"]
        if all(case.get(key) == value for key, value in wanted.items())
    ]
    assert found, (file, wanted)
    return found


def array(nested, dtype=None):
    """Nested lists, with words for what JSON has no number for, as an array."""

    def numbers(x):
        return list(map(numbers, x)) if isinstance(x, list) else WORDS.get(x, x)

    return jnp.asarray(np.array(numbers(nested), np.float64), dtype)


def tree(nested, dtype=None):
    return [array(leaf, dtype) for leaf in nested]


def run(tx, gradients, params=None):
    """All outputs of a sequence, and the metrics after each, by one compiled scan."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    init = tx.init(gradients[0] if params is None else params)

    @jax.jit
    def scanned(stacked):
        def step(state, gradient):
            out, state = tx.update(gradient, state, params)
            return state, (out, jaxclip.metrics(state), state)

        return jax.lax.scan(step, init, stacked)[1]

    return scanned(stacked)


def steps_of(case, key="grad", dtype=None):
    return [tree(step[key], dtype) for step in case["steps"]]


def assert_outputs(outs, case, key="out", until=None, start=0, rtol=1e-5):
    expected = steps_of(case, key)[start:until]
    for leaf, *references in zip(outs, *expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(leaf)[start:until], np.stack(references), rtol=rtol, atol=1e-9
        )


def ids(found, *keys):
    return ["-".join(str(case.get(key, "")) for key in keys) for case in found]


# --- fixed limits ---------------------------------------------------------------------------------


def test_golden_torch_clip_grad_norm():
    """Beyond what PyTorch, in float32, zeroes or leaves: sums that overflow, and infinities."""
    seen = 0
    for case in cases("torch_clip", fn="clip_grad_norm_"):
        grads = tree(case["grads"], case["dtype"])
        flat = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in grads])
        ord, total = WORDS.get(case["norm_type"], case["norm_type"]), case["total_norm"]
        if ord < 1 or not np.isfinite(flat).all() or not isinstance(total, float):
            continue
        tx = jaxclip.clip_by_global_norm(case["max_norm"], ord=ord, eps=1e-6)
        out, state = tx.update(grads, tx.init(grads))
        loose = 1e-2 if case["dtype"] == "bfloat16" else 1e-5
        if total == 0 and flat.any():  # its sum of squares underflows
            total = np.linalg.norm(flat, ord)
        np.testing.assert_allclose(jaxclip.metrics(state)["clip"].norm, total, rtol=loose)
        for ours, theirs in zip(out, tree(case["out"]), strict=True):
            np.testing.assert_allclose(
                np.asarray(ours, np.float64), theirs, rtol=loose, atol=1e-6 * abs(flat).max()
            )
        seen += 1
    assert seen > 50


def test_golden_torch_clip_grad_value():
    """PyTorch makes an infinite entry the limit and so hides it; here it is nan."""
    for case in cases("torch_clip", fn="clip_grad_value_"):
        grads = tree(case["grads"], case["dtype"])
        tx = jaxclip.clip_by_value(case["clip_value"])
        out, _ = tx.update(grads, tx.init(grads))
        for x, ours, theirs in zip(grads, out, tree(case["out"]), strict=True):
            expected = np.where(np.isinf(np.asarray(x, np.float64)), np.nan, theirs)
            np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("fn", "method", "argument"),
    [
        ("clip", jaxclip.clip_by_value, "arg"),
        ("clip_by_block_rms", jaxclip.clip_by_block_rms, "arg"),
        ("clip_by_global_norm", jaxclip.clip_by_global_norm, "arg"),
        ("normalize_by_update_norm", jaxclip.normalize_by_global_norm, "scale_factor"),
    ],
)
def test_golden_optax(fn, method, argument):
    """Optax makes nan of zeros where the limit is zero; here they stay zeros."""
    seen = 0
    for case in cases("optax_clip", fn=fn):
        grads = tree(case["grads"], jnp.float32)
        flat = np.concatenate([np.ravel(x) for x in grads])
        if not np.isfinite(flat).all() or np.abs(flat).max() > 1e15:
            continue
        tx = method(case[argument])
        out, _ = tx.update(grads, tx.init(grads))
        for x, ours, theirs in zip(grads, out, tree(case["out"]), strict=True):
            expected = np.where(np.isnan(theirs) & (np.asarray(x) == 0), 0, theirs)
            if "eps" in case:  # Optax adds it to the norm
                norm = np.linalg.norm(flat.astype(np.float64))
                expected = expected * (norm + case["eps"]) / np.where(norm > 0, norm, 1)
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6 * abs(flat).max())
        seen += 1
    assert seen >= 3


def test_golden_optax_adaptive_grad_clip():
    """Of a kernel of rank 3 Optax keeps two axes, against its own docstring; `axes` can, too."""
    for case in cases("optax_clip", fn="adaptive_grad_clip"):
        param, grad = array(case["param"]), array(case["grad"])
        if not np.isfinite(grad).all():
            continue
        vector = param.squeeze().ndim < 2  # a matrix of one row counts as one
        axes = () if vector else {2: -1, 3: (1, 2)}.get(param.ndim)
        tx = jaxclip.adaptive_grad_clip(case["clipping"], case["eps"], axes)
        out, _ = jax.jit(tx.update)(grad, tx.init(param), param)
        np.testing.assert_allclose(out, array(case["out"]), rtol=1e-5, atol=1e-8)


def test_golden_timm_agc():
    """In timm kernels have the outputs first."""
    for case in cases("timm_agc"):
        param, grad = array(case["param"]), array(case["grad"])
        if not np.isfinite(grad).all():
            continue
        axes = 0 if param.ndim > 1 else ()
        tx = jaxclip.adaptive_grad_clip(case["clip_factor"], case["eps"], axes)
        out, _ = jax.jit(tx.update)(grad, tx.init(param), param)
        np.testing.assert_allclose(out, array(case["out"]), rtol=1e-5, atol=1e-8)


def test_golden_pytorch_optimizer_agc():
    """It reduces axis 1 alone of a kernel of rank 3."""
    for case in cases("pytorch_optimizer", cls="agc"):
        param, grad = array(case["param"]), array(case["grad"])
        axes = {1: (), 2: 0, 3: (0, 2), 4: 0}[param.ndim]
        tx = jaxclip.adaptive_grad_clip(case["agc_clip_val"], case["agc_eps"], axes)
        out, _ = jax.jit(tx.update)(grad, tx.init(param), param)
        np.testing.assert_allclose(out, array(case["out"]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("fn", "tx"),
    [
        ("l2_clip_", jaxclip.clip_by_leaf_norm(1.0)),
        ("global_l2norm_clip", jaxclip.clip_by_global_norm(1.0)),
    ],
)
def test_golden_heavyball(fn, tx):
    for case in cases("heavyball", fn=fn):
        grads = tree(case["grads"])
        if not all(np.isfinite(x).all() for x in grads):
            continue
        out, _ = tx.update(grads, tx.init(grads))
        for ours, theirs in zip(out, tree(case["out"]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fn", ["tf.clip_by_norm", "tf.clip_by_global_norm", "tf.clip_by_value"])
def test_golden_tensorflow(fn):
    for case in cases("tensorflow_clippy", fn=fn):
        grads = tree(case["grads"], jnp.float32)
        flat = np.concatenate([np.ravel(x) for x in grads])
        if not np.isfinite(flat).all() or np.abs(flat).max() > 1e15:
            continue
        tx = {
            "tf.clip_by_norm": lambda c: jaxclip.clip_by_leaf_norm(c["clip_norm"]),
            "tf.clip_by_global_norm": lambda c: jaxclip.clip_by_global_norm(c["clip_norm"]),
            "tf.clip_by_value": lambda c: jaxclip.clip_by_value(c["hi"]),
        }[fn](case)
        out, _ = tx.update(grads, tx.init(grads))
        for ours, theirs in zip(out, tree(case["out"]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * abs(flat).max())


def test_golden_tensorflow_recommenders_clippy():
    for case in cases("tensorflow_clippy", fn="shrink_by_references"):
        delta, reference = array(case["delta"]), array(case["reference"])
        tx = jaxclip.clippy(case["relative_factor"], case["absolute_factor"])
        out, _ = tx.update(delta, tx.init(reference), reference)
        np.testing.assert_allclose(out, array(case["out"]), rtol=1e-5)


def test_golden_tensorflow_recommenders_clippy_adagrad():
    """As a chain: the accumulator before the step, the learning rate, and the clip last."""
    for case in cases("tensorflow_clippy", fn="ClippyAdagrad"):
        config = case["config"]
        if "accumulator_relative_threshold" in config or "clip_accumulator_update" in config:
            continue
        tx = jaxclip.clippy(
            config.get("variable_relative_threshold", 0.1), config.get("absolute_threshold", 1e-7)
        )
        var = array(case["var0"])
        before = None
        for step in case["steps"]:
            grad, after = array(step["grad"]), array(step["accumulator"])
            before = after - grad**2 if before is None else before
            seen = after if config.get("use_standard_accumulator_update") else before
            delta = -case["learning_rate"] * grad / jnp.sqrt(seen + 1e-7)
            out, _ = tx.update(delta, tx.init(var), var)
            var, before = var + out, after
            np.testing.assert_allclose(var, array(step["var"]), rtol=1e-4, atol=1e-6)


# --- adaptive limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("zclip"), ids=ids(cases("zclip"), "config"))
def test_golden_zclip(case):
    """One nan makes the moments of PyPI `zclip` nan for ever; here it is no more than counted."""
    config = dict(case["config"])
    names = {
        "alpha": "decay",
        "z_thresh": "z",
        "warmup_steps": "warmup",
        "max_grad_norm": "limit",
        "clip_factor": "factor",
    }
    given = {names[key]: value for key, value in config.items() if key in names}
    rule = {"mean": "mean", "percentile": "cap"}.get(
        config.get("clip_option") or config.get("mode"), "adaptive"
    )
    feed = "within_limit" if config.get("skip_update_on_spike") else "clipped"
    gradients = steps_of(case)
    finite = [all(np.isfinite(x).all() for x in leaves) for leaves in gradients]
    until = finite.index(False) if False in finite else None
    outs, _, states = run(jaxclip.zclip(**given, rule=rule, feed=feed), gradients)
    assert_outputs(outs, case, until=until)
    moments = jax.tree.leaves(
        states.thresholds, is_leaf=lambda x: isinstance(x, thresholds.averages.Moments)
    )[0]
    for k, step in enumerate(case["steps"][:until]):
        if step["initialized"] and step["mean"] is not None:
            np.testing.assert_allclose(moments.mean[k], step["mean"], rtol=1e-5)
            variance = np.square(moments.deviation[k])
            np.testing.assert_allclose(variance, step["var"], rtol=1e-5, atol=1e-9)
    assert np.isfinite(moments.mean).all()


@pytest.mark.parametrize(
    "case", cases("autoclip_authors"), ids=ids(cases("autoclip_authors"), "clip_percentile")
)
def test_golden_autoclip_authors(case):
    outs, metrics, _ = run(jaxclip.autoclip(case["clip_percentile"]), steps_of(case))
    assert_outputs(outs, case)
    np.testing.assert_allclose(
        metrics["clip"].limit, [step["threshold"] for step in case["steps"]], rtol=1e-6
    )


def _before(threshold, first=np.inf):
    """The limit that a threshold had one step before: of the norms without the present one."""

    def init(norm):
        return threshold.init(norm), jnp.full_like(norm, first)

    def update(norm, state, now):
        limit, inner = threshold.update(norm, state[0], now)
        return state[1], (inner, limit)

    return thresholds.Threshold(init, update)


def test_golden_pypi_autoclip_quantile():
    """PyPI `autoclip` is another project: it leaves the present norm out."""
    for case in cases("autoclip_pypi", cls="QuantileClip"):
        config = case["config"]
        quantile = thresholds.quantile(
            config["quantile"], window=config.get("history_length", 1000)
        )
        whole = config.get("global_threshold", False)
        tx = jaxclip.clip(measures.whole() if whole else measures.per_leaf(), _before(quantile))
        outs, _, _ = run(tx, steps_of(case))
        assert_outputs(outs, case)


def test_golden_trellis_windowed_percentile():
    """A quantile that counts once its window is full, and a cap."""
    for case in cases("trellis_adaptive_clipper"):
        config = case["config"]
        quantile = thresholds.quantile(
            config["clip_percentile"] / 100, window=config["buffer_size"]
        )
        limit = thresholds.lowest(
            config["max_norm"],
            thresholds.warmup_then(config["buffer_size"], np.inf, _before(quantile)),
        )
        gradients = steps_of(case)
        outs, _, _ = run(jaxclip.clip(measures.whole(), limit), gradients)
        finite = [all(np.isfinite(x).all() for x in leaves) for leaves in gradients]
        assert_outputs(outs, case, until=finite.index(False) if False in finite else None)


@pytest.mark.parametrize("warmup", [6, 0])
def test_golden_pytorch_optimizer_adagc(warmup):
    [case] = [
        case
        for case in cases("pytorch_optimizer", cls="AdaGC")
        if case["config"]["warmup_steps"] == warmup
    ]
    tx = jaxclip.adagc(warmup=max(warmup, 2))  # a first norm is needed in any case
    outs, _, states = run(tx, steps_of(case))
    assert_outputs(outs, case, "clipped")
    averages = states.thresholds[1].mean
    expected = np.array([step["gamma"] for step in case["steps"]])
    np.testing.assert_allclose(np.stack(averages, 1), expected, rtol=1e-5)


def test_golden_olmo_norm_ratio():
    """Its averages begin at the second step; ours, begun there, are the same from there on."""
    [case] = cases("olmo", cls="OLMo._do_adaptive_clipping")
    decay = max(case["betas"])
    outs, _, states = run(
        jaxclip.clip_by_norm_ratio(case["max_grad_norm_ratio"], decay=decay), steps_of(case)[1:]
    )
    expected = steps_of(case, "out")[1:]
    for leaf, *references in zip(outs, *expected, strict=True):
        np.testing.assert_allclose(leaf, np.stack(references), rtol=1e-5)
    averages = np.stack(states.thresholds.mean, 1)
    np.testing.assert_allclose(
        averages, [step["grad_norm_exp_avg"] for step in case["steps"][1:]], rtol=1e-5
    )


def test_golden_levanter_history():
    [case] = cases("jax_frameworks", fn="levanter.clip_update_by_historical_norm")
    tx = jaxclip.clip_by_history(case["sigma_factor"], window=case["rolling_interval_length"])
    outs, _, _ = run(tx, steps_of(case))
    assert_outputs(outs, case)


@pytest.mark.parametrize(
    ("file", "steps_between"),
    [("spam_authors", "DeltaT"), ("pytorch_optimizer", "update_proj_gap")],
)
def test_golden_spam(file, steps_between):
    """Until the optimizer's own reset of its moments, which is no part of the clip."""
    [case] = cases(file, cls="SPAM")
    config = case["config"]
    tx = jaxclip.spam_clip(
        config["threshold"], decay=config["betas"][1], warmup=config["grad_accu_steps"]
    )
    outs, _, states = run(tx, steps_of(case))
    until = min(config[steps_between], len(case["steps"])) - 1
    assert_outputs(outs, case, "clipped", until=until)
    for k, root in enumerate(states.thresholds.root):
        expected = np.stack([np.asarray(array(step["v"][k])) for step in case["steps"]])
        np.testing.assert_allclose(np.square(root)[:until], expected[:until], rtol=1e-5)


def test_golden_tensorflow_privacy_quantile():
    """The rule over the norms of a batch is that of each, with the rate over their number."""
    [case] = [case for case in cases("quantile_tfp") if case["config"]["geometric_update"]]
    config = case["config"]
    limit = config["initial_estimate"]
    for step in case["steps"]:
        np.testing.assert_allclose(limit, step["C_used"], rtol=1e-5)
        tracker = thresholds.geometric_quantile(
            config["target_quantile"],
            rate=config["learning_rate"] / len(step["norms"]),
            initial=limit,
        )
        moved = [
            tracker.update(jnp.asarray(norm), tracker.init(jnp.zeros(())), None)[1] / limit
            for norm in step["norms"]
        ]
        limit = float(limit * np.prod(moved))
        np.testing.assert_allclose(limit, step["C_next"], rtol=1e-5)


# --- skipping, spectra, and what is a chain -------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "window", "sigma"),
    [
        ("olmo", "SkipStepOptimizer", "rolling_interval_length", "sigma_factor"),
        ("jax_frameworks", "maxtext.skip_step_on_spikes", "interval", "scaling_factor"),
    ],
)
def test_golden_skip_on_spike(file, name, window, sigma):
    """Of a window of 5 or less OLMo skips the second step, as its deviation of one value is nan."""
    key = "cls" if file == "olmo" else "fn"
    for case in cases(file, **{key: name}):
        if file == "olmo" and case[window] < 6:
            continue
        tx = jaxclip.skip_on_spike(
            optax.sgd(1.0), sigma=case[sigma], window=case[window], feed="raw"
        )
        state = tx.init(jnp.zeros(1))
        update = jax.jit(tx.update)
        for step in case["steps"]:
            loss, norm = WORDS.get(step["loss"], step["loss"]), step["grad_norm"]
            gradient = jnp.array([WORDS.get(norm, norm)])
            if not np.isfinite([loss, gradient[0]]).all():
                break  # theirs lets it into the window; ours never does
            out, state = update(gradient, state, value=jnp.asarray(loss))
            skipped = step["skipped"] if "skipped" in step else step["step_factor"] == 0
            assert bool(out[0] == 0) == skipped


def test_golden_optax_apply_if_finite():
    for case in cases("optax_clip", fn="apply_if_finite"):
        tx = jaxclip.skip_nonfinite(optax.sgd(1.0), max_consecutive=case["max_consecutive_errors"])
        state = tx.init(jnp.zeros(2))
        for step in case["steps"]:
            out, state = tx.update(array(step["grad"]), state)
            np.testing.assert_allclose(out, array(step["update"]))
            assert int(state.consecutive) == step["notfinite_count"]


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_golden_spectra_clip_sigvals(method):
    """Its vectors jump at the limit; here they are matrices of one row."""
    for case in cases("spectral_clip", fn="SPECTRA.clip_sigvals"):
        x = array(case["X"])
        expected = array(case.get("exact_svd", case["out"]))
        if x.ndim < 2:
            norm = jnp.linalg.norm(x)
            expected = x / jnp.sqrt(1 + (norm / case["clip_c"]) ** 2)
        tx = jaxclip.clip_singular_values(
            case["clip_c"], method=method, shrink=shrinks.inverse_sqrt
        )
        out, _ = tx.update(x, tx.init(x))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_golden_spectral_hardcap(method):
    found = [
        case
        for case in cases("spectral_clip")
        if "hardcap" in case["fn"] or case.get("sigma_min") == 0
    ]
    found = found or [case for case in cases("spectral_clip") if "sigma_max" in case]
    for case in found:
        x = array(case["X"])
        limit = case.get("sigma_max", case.get("beta"))
        left, values, right = np.linalg.svd(np.asarray(x), full_matrices=False)
        low = case.get("sigma_min", 0)
        np.testing.assert_allclose(
            (left * np.clip(values, low, limit)) @ right, array(case["exact_svd"]), atol=1e-12
        )
        tx = jaxclip.clip_singular_values(limit, method=method)
        out, _ = tx.update(x, tx.init(x))
        np.testing.assert_allclose(out, (left * np.minimum(values, limit)) @ right, atol=1e-6)
        if method == "svd" and low:
            banded = jaxclip.clip_singular_values(
                limit, shrink=lambda n, t, low=low: shrinks.band(n, t, low=low / t)
            )
            out, _ = banded.update(x, banded.init(x))
            np.testing.assert_allclose(out, array(case["exact_svd"]), rtol=1e-5, atol=1e-9)


ZHANG = [case for case in cases("clipped_gd_zhang") if case["algo"] != "ACClip"]


@pytest.mark.parametrize("case", ZHANG, ids=ids(ZHANG, "algo"))
def test_golden_zhang_clipped_gradient_descent(case):
    """Each is a chain, and none a method of its own; ACClip clips what it does not measure."""
    config = case["config"]
    rate, gamma = config["lr"], config.get("gamma")
    averaged = optax.ema(config.get("momentum", 0.0), debias=False)
    chain = {
        "SGD": lambda: optax.sgd(rate),
        "SGDClip": lambda: optax.chain(
            averaged, optax.scale(-rate), jaxclip.clip_by_global_norm(gamma)
        ),
        "NormalizedSGD": lambda: optax.chain(
            averaged, jaxclip.normalize_by_global_norm(), optax.scale(-rate)
        ),
        # Their momentum clip has the rational form.
        "MomClip": lambda: optax.chain(
            averaged, optax.scale(-rate), jaxclip.smooth_clip_by_global_norm(gamma)
        ),
    }[case["algo"]]()
    outs, _, _ = run(chain, steps_of(case))
    moved = [np.cumsum(np.asarray(leaf), 0) for leaf in outs]
    assert_outputs(moved, case, "params", rtol=1e-4)  # theirs adds 1e-6 to the norm
