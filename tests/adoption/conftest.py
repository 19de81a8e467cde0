import jax
import pytest


@pytest.fixture(autouse=True)
def as_trainers_run():
    """Promotes dtypes as JAX does by default; the rest of the tests is stricter."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
