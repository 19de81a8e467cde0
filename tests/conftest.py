"""The strict house: 8 fake devices, no silent promotion, warnings as errors (pyproject.toml)."""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_llvm_disable_expensive_passes=true"  # compiling is what the suite spends its time on
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_terminal_summary(terminalreporter):
    from tests.helpers import METHODS

    terminalreporter.write_line(f"The contract covers {len(METHODS)} methods.")
