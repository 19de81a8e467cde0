import jax.numpy as jnp
import pytest

import jaxclip
from experiments.studies import knobs
from experiments.studies.settings import SETTINGS
from experiments.training import train


def test_every_method_has_a_knob_whose_usual_value_is_in_its_range():
    assert set(knobs.KNOBS) == set(jaxclip.named())
    for knob in knobs.KNOBS.values():
        assert knob.range.low < knob.usual < knob.range.high


def test_limits_scale_with_the_norm_and_ratios_do_not():
    setting = SETTINGS["temporal_order"]
    limit = knobs.make_arm("clip_by_value", setting).box["limit"]
    assert (limit.low, limit.high) == pytest.approx((0.003 * 0.03, 0.003 * 3))
    assert knobs.make_arm("zclip", setting).box["limit"] == knobs.KNOBS["zclip"].range


def test_no_clip_and_the_global_norm_are_one_program():
    setting = SETTINGS["mnist"]
    bare, clipped = knobs.unclipped_arm(setting), knobs.make_arm("clip_by_global_norm", setting)
    assert bare.config == clipped.config
    assert bare.config != knobs.make_arm("zclip", setting).config


@pytest.mark.parametrize("method", jaxclip.named())
def test_the_metrics_of_every_method_are_found_in_its_state(method):
    clip = knobs.make_clip(method, jnp.asarray(knobs.KNOBS[method].range.low))
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    [name] = jaxclip.metrics(clip.init(params))
    assert name == train.CLIP
    assert train.find_metrics(clip.init(params)) is not None
