# Needs Python 3.11 or newer and make; every target sets up $(VENV) first when it is missing or stale.
# DEVICE=cuda and DEVICE=tpu compute there, in an environment of their own.
DEVICE ?= cpu
ifeq ($(filter cpu cuda tpu,$(DEVICE)),)
$(error DEVICE is $(DEVICE): give cpu, cuda or tpu)
endif
ON = $(patsubst -cpu,,-$(DEVICE))
LOCK = requirements$(ON).lock
VENV ?= .venv$(ON)
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
RUN = $(VENV)/bin/python
COMMA = ,
RUN_ON_DEVICE = $(if $(ON),JAX_PLATFORMS=$(DEVICE)$(COMMA)cpu) $(RUN)
READY = $(VENV)/.ready
ARGS ?=

.PHONY: run compare claims device test test-wide test-quick lint docs bench setup lock check-locks release clean
.DEFAULT_GOAL := run

# A virtual environment whose interpreter is gone, or is another than the one asked for, is stale too.
ifneq ($(shell $(RUN) -c 'print("works")' 2>/dev/null),works)
$(shell rm -f $(READY))
endif

$(READY): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "jaxclip needs Python 3.11 or newer, and none was found: install one, or name it with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once: about a minute."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)

# An error where the device that is asked for is missing.
device: $(READY)
ifneq ($(DEVICE),cpu)
	@JAX_PLATFORMS=$(DEVICE) $(RUN) -c 'import jax; jax.devices()' >/dev/null 2>&1 || { echo "DEVICE is $(DEVICE), and JAX finds no such device here: look at its driver, or leave DEVICE out." >&2; exit 1; }
endif

# The main job: an MLP on MNIST with a clipped SGD. More with 'make run ARGS="--clip zclip --epochs 3"'.
run: device
	@$(RUN_ON_DEVICE) -m experiments run mnist $(ARGS)

# The quick form of a study. Others with 'make compare ARGS="sensitivity --full"'.
compare: device
	@$(RUN_ON_DEVICE) -m experiments compare $(or $(ARGS),schedules)

# The quick forms of all studies that claims about clips are judged by, on one page.
claims: device
	@$(RUN_ON_DEVICE) -m experiments claims $(ARGS)

test: device
	@$(RUN_ON_DEVICE) -m pytest -n 2 --cov $(ARGS)

# What the newest Python has to pass in CI: all but the slow tests.
test-quick: $(READY)
	@$(RUN) -m pytest -n 2 -m "not slow and not wide" $(ARGS)

# What takes long, and is seldom broken by daily work.
test-wide: $(READY)
	@$(RUN) -m pytest -n 2 -m wide $(ARGS)

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pyright --pythonpath $(RUN)
	@$(RUN) -m pytest --quiet --durations 0 tests/test_floors.py

docs: $(READY)
	@$(RUN) -m mkdocs build --strict

bench: device
	@$(RUN_ON_DEVICE) -m benchmarks $(ARGS)

# Maintainers only: every version and hash anew, of the packages for a CPU first.
COMPILE = $(RUN) -m uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-strip-extras --no-annotate --no-header --quiet --extra experiments --extra privacy --extra docs --extra dev
lock: $(READY)
	@$(COMPILE) --upgrade -o requirements.lock
	@for device in cuda tpu; do cp requirements.lock requirements-$$device.lock && \
		$(COMPILE) --extra $$device -o requirements-$$device.lock || exit 1; done

# Whether every lock is what its packages resolve to; nothing is downloaded but their metadata.
check-locks: $(READY)
	@scratch=$$(mktemp -d) && for device in "" cuda tpu; do \
		lock=requirements$${device:+-$$device}.lock && cp $$lock $$scratch && \
		$(COMPILE) $${device:+--extra $$device} -o $$scratch/$$lock && \
		diff -q $$lock $$scratch/$$lock || { echo "$$lock is not what pyproject.toml resolves to: run 'make lock'." >&2; exit 1; }; done

# Maintainers only: what a person then tags and uploads.
release: $(READY)
	@rm -rf dist
	@$(RUN) -m hatchling build
	@$(RUN) -m uv tool run twine check --strict dist/*
	@echo "Built. Left to you: the date of this version in CHANGELOG.md, 'git tag v$$($(RUN) -m hatchling version)', and '$(RUN) -m uv tool run twine upload dist/*'."

clean:
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache
