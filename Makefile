PYTHON ?= python3
BIN := .venv/bin
USE := .venv/installed
DEV := .venv/installed-dev
UV := $(shell command -v uv)

.PHONY: install constraints pinned tour demo papers bench compare test test-slow test-all stress lint format docs clean

# what the programs and the demo need; `make test` and the like add the tools. The versions are those of constraints.txt,
# which were tested together. One command installs all, so that torch and torchvision are chosen together
install: $(USE)

ifdef UV
VENV = $(UV) venv --quiet --seed --python $(PYTHON) .venv
INSTALL = $(UV) pip install --python $(BIN)/python --constraint constraints.txt --editable
else
VENV = $(PYTHON) -m venv .venv
INSTALL = $(BIN)/python -m pip install --constraint constraints.txt --editable
endif

$(USE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(VENV)
	$(INSTALL) '.[demo]'
	touch $@

$(DEV): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(VENV)
	$(INSTALL) '.[dev]'
	touch $(USE) $@

# newer versions: all of .venv is brought up to date and written down, for other systems and Pythons by uv, which
# keeps what .venv has wherever it runs there. `make test-all` says whether to commit them
constraints:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade --upgrade-strategy eager --editable '.[dev,wandb]'
	$(MAKE) pinned

# constraints.txt from .venv as it is
pinned:
	$(BIN)/python -m pip list --format freeze --exclude-editable > .venv/versions.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header --upgrade \
		--constraint .venv/versions.txt --output-file constraints.txt pyproject.toml

# minutes; every law by a sample at least. `make test-slow` is the rest, with more examples for hypothesis' laws. Python keeps
# what it compiled, for hundreds of processes that tests start, also where the environment says not to
test test-slow stress: export PYTHONDONTWRITEBYTECODE :=

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

test-slow: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'slow or hypothesis' --hypothesis-profile=thorough

test-all: test test-slow

# the whole matrix of kills, refused system calls and damaged files; `make test` runs a sample of it
STRESS_SCALE ?= 20
MATRIX ?= matrix.jsonl

stress: $(DEV)
	rm -f $(MATRIX)
	$(BIN)/python -m pytest tests/stress --stress-scale=$(STRESS_SCALE) --matrix-report=$(MATRIX); \
	status=$$?; $(BIN)/python -m benchmarks.reliability $(MATRIX) && exit $$status

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# warnings are errors: links and anchors that lead nowhere, pages that the nav lacks
docs: $(DEV)
	$(BIN)/mkdocs build --strict

# labels, statistics, pictures and a page of real photographs by a real ImageNet teacher: make tour IMAGES=my/photographs
tour: install
	$(BIN)/python -m benchmarks.tour $(if $(IMAGES),--images '$(IMAGES)')

demo: install
	$(BIN)/python -m benchmarks.demo

# the papers' claims in miniature, and with a real teacher on real pictures (benchmarks/papers/real says what these need);
# finished runs are kept, so that an interrupted call goes on
papers: install
	$(BIN)/python -m benchmarks.papers $(PAPERS_ARGS)
	$(BIN)/python -m benchmarks.papers.real --folder papers/real $(REAL_ARGS)

# what was promised, as ratios taken in one run; the store at ImageNet's size (40 minutes) is benchmarks.imagenet_scale
bench: $(DEV)
	$(BIN)/python -m benchmarks.loader --output benchmarks/reports
	$(BIN)/python -m benchmarks.generation --output benchmarks/reports

# this store beside other layouts of the same labels: hours of writing and reading, all of it on this machine
compare: $(DEV)
	$(BIN)/python -m benchmarks.compare --report $(COMPARE_ARGS)

clean:
	rm -rf demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
