# make demo: from nothing to a trained text-to-image model. make test: every test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs venv dev clean

venv: .venv/.made
.venv/.made: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

dev: .venv/.made-dev
.venv/.made-dev: .venv/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/limner demo

# The emoji source draws with Debian's font and takes names from its packages; where we are root we may install them.
test: dev
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s fonts-noto-color-emoji unicode-data unicode-cldr-core >/dev/null 2>&1; then \
		(apt-get update -q && apt-get install -y -q fonts-noto-color-emoji unicode-data unicode-cldr-core) >/dev/null 2>&1 || true; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

docs: dev
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv runs
