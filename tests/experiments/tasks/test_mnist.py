import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks import images as data
from experiments.tasks.images import Images
from experiments.tasks.mnist import Mnist


@pytest.fixture(scope="module")
def params():
    return Mnist().init(jax.random.key(0))


def test_the_network_is_784_128_10(params):
    assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == [
        (10,),
        (128,),
        (128, 10),
        (784, 128),
    ]


def test_the_hidden_layers_are_a_choice():
    shapes = jax.eval_shape(Mnist(hidden=(64, 32)).init, jax.random.key(0))
    kernels = [layer["kernel"].shape for layer in shapes["layers"].values()]
    assert kernels == [(784, 64), (64, 32), (32, 10)]


def test_the_logits_are_what_a_hand_written_network_gives(params, tiny):
    x = tiny.test.images.reshape(len(tiny.test.images), -1) / np.float32(255)
    first, second = (jax.tree.map(np.asarray, params["layers"][index]) for index in (0, 1))
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(Mnist().logits(params, tiny.test.images), expected, atol=1e-5)


def test_without_knowledge_the_loss_is_the_log_of_the_classes(params, tiny):
    blank = jax.tree.map(jnp.zeros_like, params)
    assert jnp.allclose(Mnist().loss(blank, tiny.train), jnp.log(10.0))


def test_the_score_is_the_share_told_right(params, tiny):
    told = np.asarray(Mnist().logits(params, tiny.test.images)).argmax(-1).astype(np.uint8)
    wrong = told.copy()
    wrong[:5] = (told[:5] + 1) % 10
    assert Mnist().score(params, Images(tiny.test.images, told)) == 1
    assert jnp.allclose(Mnist().score(params, Images(tiny.test.images, wrong)), 0.9)


@pytest.mark.parametrize("count", [1000, 2500])
def test_the_score_counts_every_image_once_whatever_does_not_fill_a_slice(params, count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    told = np.asarray(Mnist().logits(params, pixels)).argmax(-1).astype(np.uint8)
    told[[0, 500, -1]] = (told[[0, 500, -1]] + 1) % 10
    score = jax.jit(Mnist().score)(params, Images(pixels, told))
    np.testing.assert_allclose(score, 1 - 3 / count, rtol=1e-6)


def test_a_score_holds_the_activations_of_one_slice_at_a_time():
    task = Mnist(hidden=(256,))
    params = jax.eval_shape(task.init, jax.random.key(0))
    images = Images(np.zeros((10_000, 28, 28, 1), np.uint8), np.zeros(10_000, np.uint8))
    compiled = jax.jit(task.score).lower(params, images).compile()
    all_pixels = 10_000 * 784 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_pixels / 4


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_the_images_are_those_of_the_data_set_from_the_folder(dataset, tiny, monkeypatch):
    known = {(dataset, None): tiny, (dataset, "there"): "other"}
    monkeypatch.setattr(data, "load", lambda *asked: known[asked])
    assert Mnist(dataset=dataset).data() is tiny
    assert Mnist(dataset=dataset).data("there") == "other"


def test_bfloat16_is_for_the_layers_and_not_for_the_parameters(params, tiny):
    task = Mnist(precision="bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(task.init(jax.random.key(0)), params)
    loss, gradient = jax.value_and_grad(task.loss)(params, tiny.train)
    chex.assert_trees_all_equal_dtypes(gradient, params)
    assert loss.dtype == jnp.float32
    products = str(jax.make_jaxpr(task.loss)(params, tiny.train))
    assert "bf16[200,10] = dot_general" in products
    assert jnp.allclose(loss, Mnist().loss(params, tiny.train), rtol=0.02)
