PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install demo papers bench compare test stress lint format clean tour

install: $(STAMP)

# one pip command, so that torch and torchvision are chosen together and fit each other
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(STAMP)

test: install
	$(BIN)/python -m pytest --numprocesses 2

# the whole matrix of kills, refused system calls and damaged files; `make test` runs a sample of it
STRESS_SCALE ?= 20
MATRIX ?= matrix.jsonl

stress: install
	rm -f $(MATRIX)
	$(BIN)/python -m pytest tests/stress --stress-scale=$(STRESS_SCALE) --matrix-report=$(MATRIX); \
	status=$$?; $(BIN)/python -m benchmarks.reliability $(MATRIX) && exit $$status

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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
bench: install
	$(BIN)/python -m benchmarks.loader --output benchmarks/reports
	$(BIN)/python -m benchmarks.generation --output benchmarks/reports

# this store beside other layouts of the same labels: hours of writing and reading, all of it on this machine
compare: install
	$(BIN)/python -m pip install --quiet --editable '.[compare]'
	$(BIN)/python -m benchmarks.compare --report $(COMPARE_ARGS)

clean:
	rm -rf demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
