import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxclip
from experiments.errors import BadInput
from experiments.training import parallel, train
from experiments.training.config import Config, trial
from experiments.training.sampling import Poisson
from tests.experiments.line import LINE, Line

CONFIG = Config(Line(), jaxclip.clip_by_global_norm, batch_size=8, epochs=2)
# Six examples have room in a batch, which eight devices cannot share without padding.
SAMPLED = Config(
    Line(),
    jaxclip.clip_by_global_norm,
    per_example=jaxclip.value_and_clipped_grad,
    sampler=Poisson(room=6),
    batch_size=4,
    epochs=2,
)
make_mesh = parallel.make_mesh  # before the fixture `one_device` replaces it


@pytest.fixture
def eight_devices(monkeypatch):
    monkeypatch.setattr(parallel, "make_mesh", make_mesh)


@pytest.mark.parametrize("config", [CONFIG, SAMPLED])
def test_eight_devices_train_as_one(eight_devices, config):
    numbers = trial(3, 0.1, 0.5)
    trainer = parallel.Trainer(config, numbers, LINE)
    assert trainer.mesh.size == 8
    compiled = trainer.code.epoch._cache_size()
    state = trainer.init()
    alone = jax.jit(train.init, static_argnums=0)(config, numbers, LINE)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(alone))
    epoch = jax.jit(train.epoch, static_argnums=0)
    for _ in range(config.epochs):
        state, history = trainer.epoch(state)
        alone, expected = epoch(config, numbers, LINE, alone)
        chex.assert_trees_all_close(history, jax.device_get(expected), rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(
            jax.device_get(state), jax.device_get(alone), rtol=1e-5, atol=1e-6
        )
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal_shapes_and_dtypes(trainer.shape(), state)
    assert trainer.code.epoch._cache_size() == compiled + 1


def test_every_device_holds_its_share_of_a_batch_and_no_data_set(eight_devices):
    trainer = parallel.Trainer(CONFIG, trial(), LINE)
    batches, mask = trainer.batches(0)
    assert mask is None
    for column in batches:
        assert column.shape == (5, 8)
        assert column.sharding.spec == PartitionSpec(None, parallel.AXIS)
        assert {shard.data.shape for shard in column.addressable_shards} == {(5, 1)}
    rows, _ = train.sample(CONFIG, trial(), 40, np.int32(0))
    np.testing.assert_array_equal(batches[0], LINE.train[0][np.asarray(rows)])
    _, data = trainer.placed
    assert not jax.tree.leaves(data.train)


def test_the_devices_are_those_that_share_a_batch_evenly(monkeypatch):
    def devices(batch_size):
        config = Config(Line(), jaxclip.clip_by_global_norm, batch_size=batch_size)
        return make_mesh(config, trial(), 40).size

    assert [devices(size) for size in (40, 20, 10, 5)] == [8, 4, 2, 1]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(BadInput, match=r"--batch-size is 20, and the 8 devices of 2 processes"):
        devices(20)
