# make demo   sets up .venv, then runs the main job on built-in phantoms; TASK=segment, reconstruct or translate for others
# make test   sets up .venv, then formatter, linter, types, import contract and all tests
# make page  the page of `voxelry view`, from page/ (needs npm)
# make fuzz  hostile files for MINUTES, see benchmarks/fuzz.py
# make bench  the benchmarks; figures go to benchmarks/RESULTS.md by hand
TASK ?= landmarks
MINUTES ?= 5
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test page bench fuzz clean
.DELETE_ON_ERROR:

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/voxelry demo --task $(TASK) --out demo

test: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -q

page:
	cd page && npm ci --no-audit --no-fund && npm run build

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/unet.py
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/command_line.py
	$(BIN)/python benchmarks/landmarks_hippocampus.py
	$(BIN)/python benchmarks/segment_nuclei.py
	$(BIN)/python benchmarks/reconstruct_hippocampus.py
	$(BIN)/python benchmarks/translate.py
	$(BIN)/python benchmarks/translate_hippocampus.py

fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) demo
