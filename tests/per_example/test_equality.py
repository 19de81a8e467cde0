"""Every strategy gives what `vmap` of the gradient gives, for every model of the zoo."""

import jax
import numpy as np
import pytest

from .helpers import cast, clip, close
from .zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_auto_equals_vmap(name):
    model = ZOO[name]()
    with jax.enable_x64(True):
        exact = cast(model.params, "float64"), *cast(model.batch, "float64")
        reference, auto = clip(model, "vmap"), clip(model, "auto")
        norms = np.sort(reference(np.inf, *exact)[1].norms)
        limits = [0.5 * norms[0], 2 * norms[-1], 1.05 * norms[1:-1].mean()]  # all, none, some
        wanted = [reference(limit, *exact) for limit in limits]
        for limit, one in zip(limits, wanted, strict=True):
            close(auto(limit, *exact), one, 1e-12)
    rounded = cast(model.params, "float32"), *cast(model.batch, "float32")
    auto = clip(model, "auto")
    for limit, one in zip(limits, wanted, strict=True):
        close(auto(np.float32(limit), *rounded), one, 1e-5)
