# Needs Python 3.11 or newer and make; every target sets up $(VENV) first when it is missing or stale.
VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
ARGS ?=

.PHONY: run compare test test-wide test-quick lint docs bench setup lock release clean
.DEFAULT_GOAL := run

# A virtual environment whose interpreter is gone, or is another than the one asked for, is stale too.
ifneq ($(shell $(RUN) -c 'print("works")' 2>/dev/null),works)
$(shell rm -f $(READY))
endif

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "jaxclip needs Python 3.11 or newer, and none was found: install one, or name it with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once: about a minute."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)

# The main job: an MLP on MNIST with a clipped SGD. More with 'make run ARGS="--clip zclip --epochs 3"'.
run: $(READY)
	@$(RUN) -m experiments run mnist $(ARGS)

# The quick form of a study. Others with 'make compare ARGS="sensitivity --full"'.
compare: $(READY)
	@$(RUN) -m experiments compare $(or $(ARGS),schedules)

test: $(READY)
	@$(RUN) -m pytest -n 2 --cov $(ARGS)

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

bench: $(READY)
	@$(RUN) -m benchmarks $(ARGS)

# Maintainers only, with uv: every version and hash anew.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras \
		--no-annotate --no-header --upgrade --extra experiments --extra privacy --extra docs --extra dev -o requirements.lock

# Maintainers only, with uv: what a person then tags and uploads.
release: $(READY)
	@rm -rf dist
	@$(RUN) -m hatchling build
	@uvx twine check --strict dist/*
	@echo "Built. Left to you: the date of this version in CHANGELOG.md, 'git tag v$$($(RUN) -m hatchling version)', and 'uvx twine upload dist/*'."

clean:
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache
