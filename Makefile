# Two commands: `make audit` audits the embedded model, `make test` runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: audit test check bench-rivals clean

audit: $(STAMP)
	rm -rf runs/demo
	$(BIN)/refusalscope audit builtin:chat --out runs/demo

test: $(STAMP) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Torch first and from the constraints file, so that every machine has the same build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

bench-rivals: $(STAMP)
	PYTHON=$(BIN)/python bash benchmarks/setup_rivals.sh

clean:
	rm -rf $(VENV) build dist test-output .pytest_cache .mypy_cache .ruff_cache
