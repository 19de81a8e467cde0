import inspect

import jax
import jax.numpy as jnp
import pytest

import jaxclip
from experiments.errors import BadInput
from experiments.options.clip import Clip, Limit, read_limit
from experiments.training.schedules import shape_number

GRADIENT = {"w": jnp.array([3.0, 4.0])}


def clipped(clip, gradient=GRADIENT):
    return clip.update(gradient, clip.init(gradient), gradient)[0]


def test_a_name_alone_takes_the_limit_from_outside():
    assert jnp.allclose(clipped(Clip("clip_by_global_norm")(1.0))["w"], jnp.array([0.6, 0.8]))


def test_arguments_are_given_by_place_and_by_name():
    assert Clip("adaptive_grad_clip(0.02, eps=1e-4)").arguments == {"ratio": 0.02, "eps": 1e-4}
    assert Clip("clip_by_global_norm(2.5)").own_limit == 2.5
    assert jnp.allclose(clipped(Clip("clip_by_global_norm(2.5)")(7.0))["w"], jnp.array([1.5, 2.0]))


def test_the_limit_may_be_an_array_or_a_schedule():
    array = jax.jit(lambda limit: clipped(Clip("clip_by_global_norm")(limit)))(jnp.float32(2.5))
    scheduled = clipped(Clip("clip_by_global_norm")(lambda count: 2.5 - count.astype(jnp.float32)))
    assert jnp.allclose(array["w"], jnp.array([1.5, 2.0]))
    assert jnp.allclose(scheduled["w"], jnp.array([1.5, 2.0]))


def test_clips_of_the_same_text_are_the_same_static_argument():
    assert Clip("clip_by_value") == Clip("clip_by_value")
    assert hash(Clip("clip_by_value(2.0)")) == hash(Clip("clip_by_value(2.0)"))


@pytest.mark.parametrize("name", sorted(jaxclip.named()))
def test_every_named_method_can_be_typed(name):
    clip = Clip(name)
    assert list(clip.signature.parameters) == list(
        inspect.signature(jaxclip.named()[name]).parameters
    )
    assert clip.limit_name in ("limit", "norm", None)
    required = [
        parameter.name
        for parameter in clip.signature.parameters.values()
        if parameter.default is parameter.empty and parameter.name != clip.limit_name
    ]
    if required:
        with pytest.raises(BadInput, match=required[0]):
            clip(1.0)
    else:
        assert clipped(clip(1.0))["w"].shape == (2,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_by_globl_norm", "did you mean clip_by_global_norm"),
        ("nothing_like_it", "there are adagc, adaptive_grad_clip"),
        ("clip_by_global_norm(od=2)", "did you mean ord"),
        ("clip_by_global_norm(1.0, limit=2.0)", "gives limit twice"),
        ("clip_by_global_norm(ord=2, ord=3)", "gives ord twice"),
        ("clip_by_global_norm(1, 2, 3, 4, 5, 6, 7)", "has 7 arguments without a name"),
        ("clip_by_global_norm(1, 2)", "has 2 arguments"),
        ("clip_by_group_norm", "missing a required argument: 'labels'"),
        ("clip_by_global_norm(*[1])", "is not a literal"),
        ("clip_by_global_norm(**{'limit': 1})", "no argument None"),
        ("clip_by_global_norm(", "is not a method"),
        ("jaxclip.clip_by_value", "is not a method"),
        ("clip_by_value(1) + 1", "is not a method"),
        ("", "is not a method"),
        ("a\0b", "is not a method"),
    ],
)
def test_a_clip_that_means_nothing_is_told_in_one_line(text, message):
    with pytest.raises(BadInput, match=message) as told:
        Clip(text)(1.0)
    assert "\n" not in str(told.value)


def test_nothing_but_literals_is_evaluated(tmp_path):
    witness = tmp_path / "witness"
    for argument in (f"open({str(witness)!r}, 'w')", f"__import__('os').mkdir({str(witness)!r})"):
        with pytest.raises(BadInput, match="is not a literal"):
            Clip(f"clip_by_global_norm({argument})")(1.0)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.5", Limit(None, 0.5, 0.5, 1.0)),
        ("inf", Limit(None, float("inf"), float("inf"), 1.0)),
        ("linear:2:0.5", Limit(shape_number("linear"), 2.0, 0.5, 1.0)),
        ("cosine:1.0:0.1:0.25", Limit(shape_number("cosine"), 1.0, 0.1, 0.25)),
        ("step:1.0:0.1", Limit(shape_number("step"), 1.0, 0.1, 0.5)),
        ("step:1.0:0.1:0.75", Limit(shape_number("step"), 1.0, 0.1, 0.75)),
    ],
)
def test_a_limit_is_a_number_or_a_schedule(text, limit):
    assert read_limit(text) == limit


def test_a_schedule_that_is_known_is_not_suggested_for_itself():
    with pytest.raises(BadInput) as error:
        read_limit("cosine:1.0")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "neither a number nor a schedule"),
        ("cosin:1:2", "did you mean cosine"),
        ("cosine:1", "neither"),
        ("cosine:1:x", "neither"),
        ("cosine:1:2:0.5:4", "neither"),
        ("linear:inf:1", "not finite"),
        ("linear:1:2:0", "share"),
        ("linear:1:2:1.5", "share"),
        ("linear:1:2:nan", "share"),
    ],
)
def test_a_limit_that_means_nothing_is_told(text, message):
    with pytest.raises(BadInput, match=message):
        read_limit(text)
