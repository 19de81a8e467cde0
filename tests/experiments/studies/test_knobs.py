import jax.numpy as jnp
import pytest

import jaxclip
from experiments.studies import knobs
from experiments.training import train


def test_every_method_has_a_knob_of_five_values():
    assert set(knobs.KNOBS) == set(jaxclip.named())
    for knob in knobs.KNOBS.values():
        assert len(set(knob.values)) == 5


@pytest.mark.parametrize("method", jaxclip.named())
def test_the_metrics_of_every_method_are_found_in_its_state(method):
    clip = knobs.make_clip(method, jnp.asarray(knobs.KNOBS[method].values[0]))
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    [name] = jaxclip.metrics(clip.init(params))
    assert name == train.CLIP
    assert train.find_metrics(clip.init(params)) is not None
