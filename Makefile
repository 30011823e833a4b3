# `make demo` and `make test` do everything from a fresh clone on; a second run installs nothing again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo announce test test-all attack lint docs figures colab bench gpu speedrun pages

help:
	@echo "make demo      train DiffiT on real digits, one or two minutes on a CPU, into runs/demo/"
	@echo "make test      lint, types and all quick tests, 10-16 minutes on two cores"
	@echo "make test-all  the slow tests too"
	@echo "make attack    open about two thousand hostile files and check that none does harm"
	@echo "make docs      build the documentation site into build/site/"
	@echo "make figures   draw the figures of README and notebooks"
	@echo "make pages     run both notebooks and write them with their pictures into docs/notebooks/, 10-20 minutes"
	@echo "make bench     time training and sampling beside other libraries"
	@echo "make gpu       measure what needs a GPU, 30 minutes; started again, it goes on"
	@echo "make speedrun  train every entry of tools/speedrun/ for equal seconds, three seeds: docs/speedrun.md"
	@echo "make colab     pack what Colab needs into dist/diffit_colab.zip; REPO_URL=https://github.com/OWNER/NAME adds a badge"

install: .venv/installed

.venv/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "diffit needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@start=$$(date +%s); \
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable '.[dev]' && \
	echo $$(( $$(date +%s) - start )) > $@

demo: install
	@DIFFIT_INSTALL_SECONDS=$$(cat .venv/installed) $(BIN)/diffit demo

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: announce lint
	@$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

announce:
	@echo "make test: 10-16 minutes on two cores, and the time to install before the first one"

test-all: lint
	@$(BIN)/python -m pytest -n auto --dist worksteal

attack: install
	@$(BIN)/python tests/hostile/runner.py

docs: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[docs]'
	@rm -rf build/docs && mkdir -p build/docs/diffit_lib/pretrained
	@cp -R README.md CHANGELOG.md CITATION.cff CONTRIBUTING.md SECURITY.md LICENSE docs images *.ipynb build/docs
	@cp diffit_lib/pretrained/*.png diffit_lib/pretrained/*.md build/docs/diffit_lib/pretrained
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "site: build/site/index.html"

figures: install
	@$(BIN)/python tools/figures.py
	@$(BIN)/python tools/pictures.py

pages: install
	@$(BIN)/python tools/notebook_pages.py

bench: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[bench]'
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

gpu: install
	@$(BIN)/python benchmarks/gpu.py

speedrun: install
	@$(BIN)/python tools/speedrun.py $(wildcard tools/speedrun/*.yaml) --seconds $(or $(SECONDS),30) --table speedrun.jsonl

colab: install
	@$(BIN)/python tools/pack_colab.py dist/diffit_colab.zip $(REPO_URL)
