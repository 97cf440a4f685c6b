# The commands of CONTRIBUTING.md.  Each makes the virtual environment that it needs.
PYTHON ?= python3
VENV   ?= .venv
# The full data sets, where they lie beside the checkout; tests that need them skip where they do not.
export OCTOSIM_DATA ?= $(abspath $(wildcard ../shared/data))

# One more than the processors: tests wait for programs that they start.
WORKERS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN || echo 2))

.PHONY: demo dev docs test test-slow bench lint install-matrix clean

demo: .venv-demo/installed
	.venv-demo/bin/python tools/demo.py demo

dev: $(VENV)/installed

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

# The tests marked slow: evidence rather than checks.
test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow

# The documentation site in site/, of docs/, reports/ and the code; strict: a broken link ends it.
docs: $(VENV)/installed
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[docs,torch,onnx]'
	$(VENV)/bin/python -m mkdocs build --strict -q
	@echo "site/index.html; to search, serve it: python3 -m http.server -d site"

bench: $(VENV)/installed
	$(VENV)/bin/octosim bench --profile jetson --model simplecnn --against torch

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Wheels from the sdist with several compilers, setuptools, Pythons and processors; says what it skips.
install-matrix:
	$(PYTHON) tools/check_install.py

.venv-demo/installed: pyproject.toml setup.py $(wildcard cext/*)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/installed: pyproject.toml setup.py $(wildcard cext/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[test,peers]'
	touch $@

clean:
	rm -rf .venv .venv-demo build dist demo site octosim.egg-info octosim/_core*.so
