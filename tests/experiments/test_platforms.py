"""The main job's epoch and a chunk of a sweep lower for CPU, CUDA and TPU."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.options.run import RunMnist
from experiments.sweeps import grid, sweep
from experiments.training import train
from tests.hlo import check_lowers_everywhere


@pytest.mark.parametrize("options", [{}, {"clip": "zclip", "optimizer": "adamw", "epochs": 2}])
def test_the_epoch_of_the_main_job_lowers(tiny, options):
    command = RunMnist(**options)
    config, trial = command.config(), command.trial()
    state = jax.eval_shape(lambda: train.init(config, trial, tiny))
    with jax.numpy_dtype_promotion("standard"):  # AdamW promotes
        called = check_lowers_everywhere(functools.partial(train.epoch, config), trial, tiny, state)
    assert not any(called.values())


def test_a_chunk_of_a_sweep_lowers(tiny):
    config = RunMnist().config()
    mesh = Mesh(np.array(jax.devices()), (sweep.AXIS,))
    trials = grid.stack(grid.values("seed", *range(16)))
    chunk = sweep.select_trials(trials, 0, 16, mesh)
    check_lowers_everywhere(sweep.parallel_training(config, mesh), chunk, tiny)
