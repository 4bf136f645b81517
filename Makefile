# `make demo` and `make test` work from a fresh clone: they create .venv and install what they need.
# Nothing is written outside the clone and pip's cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
NATIVE_SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh csrc/cpu/amx/* \
  csrc/include/rao/*.h python_bindings/*)
TEST_SOURCES := $(wildcard tests/*/*.cpp tests/*/*/*.h tests/*/*/*.cu)

.PHONY: demo test lint format docs clean

demo: $(VENV)/demo.done
	@$(BIN)/rao-kernels demo

# Two processes of one thread each, as most tests are small; a file is one process's, for it shares
# models and compiled kernels.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/dev.done
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST_FLAGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES) $(TEST_SOURCES)

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE_SOURCES) $(TEST_SOURCES)

# The documentation, into build/docs; a warning is an error.
docs: $(VENV)/docs.done
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output rao_kernels/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache

$(VENV)/torch.done: constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'Python 3.11 to 3.13 is needed; say which with make PYTHON=...')"
	@echo "== 1/2 torch, into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch setuptools wheel
	@touch $@

# The other packages, then rao-kernels itself, compiled against the torch just installed.
$(VENV)/%.done: $(VENV)/torch.done pyproject.toml setup.py $(NATIVE_SOURCES)
	@echo "== 2/2 rao-kernels[$*], compiling its CPU kernels"
	@$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@
