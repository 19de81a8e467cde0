"""The strict house: 8 fake devices, no silent promotion, warnings as errors (pyproject.toml)."""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Compiling is what the suite spends its time on.
    " --xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from xdist.scheduler import LoadScopeScheduling

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


class SharedWork(LoadScopeScheduling):
    """Runs the tests in one process that share what they compile or prepare."""

    def _split_scope(self, nodeid):
        if "test_contract.py" in nodeid:
            return nodeid.rstrip("]").split("[")[-1].split("-")[-1]  # the method
        if "experiments/test_main.py" in nodeid or "tasks/test_images.py" in nodeid:
            return "MNIST"
        if "test_report_browser.py" in nodeid:
            return "browser"
        return nodeid


def pytest_xdist_make_scheduler(config, log):
    return SharedWork(config, log)


def pytest_terminal_summary(terminalreporter):
    from tests.helpers import METHODS

    terminalreporter.write_line(f"The contract covers {len(METHODS)} methods.")
