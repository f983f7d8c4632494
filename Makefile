# make demo: from nothing to a continued song.  make test: lint, types, imports, tests.  make test-all: slow tests too.
# make bench: every benchmark (hours).
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
BIN := $(VENV)/bin
# Faiss and JAX for the GPU where one answers, else for the CPU.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda12 || echo cpu)

# In tests, fixtures have no annotations and random cases are unpacked; names and signatures are checked.
MYPY_TESTS := --allow-incomplete-defs --disable-error-code=arg-type --disable-error-code=var-annotated \
	--disable-error-code=method-assign --disable-error-code=union-attr --disable-error-code=index \
	--disable-error-code=func-returns-value --disable-error-code=list-item --disable-error-code=misc

.PHONY: demo lint test test-all bench clean

# An empty file marks which extras the virtual environment has; a changed pyproject.toml installs anew.
$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$(DEVICE),$*]"
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m midigen_jax.music21_corpus --out $(RUN)/midi
	$(BIN)/python train.py configs/demo.py --data $(RUN)/midi --workdir $(RUN)
	$(BIN)/python -m midigen_jax.evaluate $(RUN) --data $(RUN)/midi --songs 16 --takes 4 --bars 16 --themes 0 --long-takes 0

lint: $(VENV)/installed-dev,demo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --cache-dir .mypy_cache/tests tests $(MYPY_TESTS) & $(BIN)/mypy && wait $$!
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-all: lint
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -q -n auto --dist worksteal --thorough --mutations 10000

bench: $(VENV)/installed-demo
	$(BIN)/python -m midigen_jax.music21_corpus --out $(RUN)/midi
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file --data $(RUN)/midi || exit; done

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
