# Two commands on a fresh machine: `make smoke`, `make test`. `make help` lists the others.
# Needs Linux and Python 3.11 or newer with venv. Once installed, nothing here goes online, but for
# what says so.

PYTHON ?= python3
CONFIG ?= configs/h200.yaml
CONSTRAINTS ?= constraints.txt
ARGS ?=

# The gate of `make inspect` holds for the version that constraints.txt pins, and for this one, which
# torch's CUDA build of the H200's image requires.
OTHER_TRITON := 3.6.0
OTHER := build/triton-$(OTHER_TRITON)
INSPECT := inspect --quiet --target sm_80,sm_90
GATE := --fail-on spills,smem,serialized,registers:10%,instructions:10%
COMPILED := tests/data/inspect-triton
# Triton compiles some kernels in two ways, by the addresses of its process: the same in every run,
# where the machine lets them be.
STEADY = $(shell setarch -R true > /dev/null 2>&1 && echo setarch -R)

# What is tested with the lowest versions: what needs NumPy and Triton, then what each other package
# is for. Left out: the schema, which the pinned pydantic wrote, and what takes long or fills pages.
MINIMUM := build/minimum
LOWEST := $(MINIMUM)/bin
TESTED := $(addprefix tests/,kernels/test_rms_norm.py kernels/test_rotary.py kernels/test_launch.py \
	kernels/test_citizens.py test_suite.py test_suite_errors.py test_report.py test_export.py \
	test_help.py test_listing.py test_optional.py test_metrics.py test_nvtx.py test_telemetry.py \
	test_page.py)
UNTESTED := shipped_schema_is_current or more_wide_rows or 5000 or any_structure or longest_real_run \
	or 500_records or torch.compile or dynamic_shapes

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A GPU is timed by one test at a time, in this process.
JOBS = $(shell if nvidia-smi > /dev/null 2>&1; then echo 0; else nproc; fi)
# How long so many minutes of a processor take, roughly.
about = on $(JOBS:0=1) of $(shell nproc) cores: about $(shell expr $(1) / $(JOBS:0=1) + 1) minutes
DOCS = $(wildcard README.md docs/*.md)

.DEFAULT_GOAL := help
.PHONY: help venv smoke test test-slow test-gpu fanout check inspect inspected minimum schema docs bench constraints \
	clean
.DELETE_ON_ERROR:

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 chooses an interpreter for $(VENV); ARGS=… goes to pytest or the run."
	@echo "  Tests run in as many processes as there are cores, or in one where there is a GPU: JOBS=4."

venv: $(STAMP) ## Create .venv with everything in it, as constraints.txt pins it

smoke: $(STAMP) ## Try it: every family, tiny, with or without a GPU; prints its tables
	$(BIN)/kernelbench run configs/smoke.yaml $(ARGS)

test: $(STAMP) ## Run the tests but for slow ones; on a machine with a GPU, those for it, too
	@echo "All tests but the slow ones, $(call about,60). Slow ones: make test-slow."
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(STAMP) ## Run the slow tests
	@echo "The slow tests, $(call about,17)."
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal $(ARGS)

test-gpu: $(STAMP) ## Run only the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

fanout: $(VENV)/.fanout ## Test fan-outs by the real engines: submitit, and a Ray cluster of two nodes (online once)
	$(BIN)/python -m pytest tests/test_fanout_real.py $(ARGS)

check: $(STAMP) ## Lint, format, types, architecture, and whether the documents are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest tests/test_architecture.py
	PATH="$(CURDIR)/$(BIN):$$PATH" cog --check --check-fail-msg="run make docs" $(DOCS)

inspect: $(STAMP) $(OTHER)/.installed ## What the compiler makes of every kernel, against the past (online once)
	$(STEADY) $(BIN)/kernelbench $(INSPECT) $(GATE) --against $(COMPILED)-3.7.json.xz $(ARGS)
	PYTHONPATH=$(OTHER) $(STEADY) $(BIN)/kernelbench $(INSPECT) $(GATE) --against $(COMPILED)-3.6.json.xz $(ARGS)

inspected: $(STAMP) $(OTHER)/.installed ## Write that past anew, after a change that is meant
	$(STEADY) $(BIN)/kernelbench $(INSPECT) --save $(COMPILED)-3.7.json.xz $(ARGS)
	PYTHONPATH=$(OTHER) $(STEADY) $(BIN)/kernelbench $(INSPECT) --save $(COMPILED)-3.6.json.xz $(ARGS)

minimum: $(MINIMUM)/.installed ## Test with the lowest versions that pyproject.toml allows (no GPU; online once)
	$(LOWEST)/python tools/minimum.py --check
	$(LOWEST)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal \
		$(TESTED) -k "not ($(UNTESTED))" $(ARGS)
	rm -rf $(MINIMUM)/runs
	$(LOWEST)/kernelbench list
	$(LOWEST)/kernelbench run smoke --family rms_norm --out $(MINIMUM)/runs
	$(LOWEST)/kernelbench report $(MINIMUM)/runs
	$(LOWEST)/kernelbench report $(MINIMUM)/runs --format html --out $(MINIMUM)/page.html

schema: $(STAMP) ## Write anew what editors and list say of families, after one changed
	$(BIN)/python tools/schema.py

docs: $(STAMP) ## Write the generated parts of the documents anew
	PATH="$(CURDIR)/$(BIN):$$PATH" cog -r $(DOCS)

bench: $(STAMP) ## Measure a suite on this machine's GPU: make bench CONFIG=configs/h200.yaml
	$(BIN)/kernelbench run $(CONFIG) $(ARGS)

clean: ## Remove .venv, caches and builds, but no results
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

constraints: ## Resolve every dependency anew around the torch and triton pinned now (online)
	rm -rf build && mkdir build
	grep -E '^(#|torch==|triton==)' constraints.txt > build/chosen.txt
	$(MAKE) --no-print-directory venv VENV=build/venv CONSTRAINTS=build/chosen.txt
	build/venv/bin/python -m pip freeze --all --exclude pip --exclude-editable \
		| grep -vE '^(#|nvidia-[^m]|cuda-)' | sed 's/+.*//' | LC_ALL=C sort -f > build/found.txt
	{ grep '^#' build/chosen.txt; cat build/found.txt; } > constraints.txt
	rm -rf build

$(VENV)/.fanout: $(STAMP)
	@$(PIP) install -q -c $(CONSTRAINTS) --no-build-isolation -e '.[slurm,ray]'
	@touch $@

# Beside .venv, not in it: on PYTHONPATH it stands before the one that is there.
$(OTHER)/.installed: $(STAMP) Makefile
	@rm -rf $(OTHER)
	@$(PIP) install -q --no-deps --target $(OTHER) triton==$(OTHER_TRITON)
	@touch $@

# An environment of its own, but for torch, which is large.
$(MINIMUM)/.installed: $(STAMP) tools/minimum.py
	@rm -rf $(MINIMUM)
	@$(BIN)/python -m venv --without-pip $(MINIMUM)
	@$(BIN)/python tools/minimum.py > $(MINIMUM)/lowest.txt
	@$(PIP) --python $(LOWEST)/python install -q -c $(MINIMUM)/lowest.txt 'setuptools>=77'
	@ln -s $(abspath $(VENV))/lib/python3*/site-packages/*torch* $(MINIMUM)/lib/python3*/site-packages
	@$(PIP) --python $(LOWEST)/python install -q --no-compile -c $(MINIMUM)/lowest.txt \
		--no-build-isolation -e '.[report]' hypothesis pytest pytest-xdist
	@$(PIP) --python $(LOWEST)/python check
	@touch $@

# One interpreter new enough, then one install. The stamp is as old as what it was made from, so a
# second call does nothing at all; setuptools lies in .venv, so that building needs no network
# (77 is the first that knows the licence field of pyproject.toml).
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
		echo "error: no '$(PYTHON)'. Install Python 3.11 or newer, or name one: make PYTHON=…"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: kernelbench needs Python 3.11 or newer, '$(PYTHON)' is" \
			"$$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12"; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "error: '$(PYTHON)' has no venv. On Debian and Ubuntu: apt install python3-venv"; \
		exit 1; }
	@echo "Installing into $(VENV); torch is the large one."
	@$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -q -c $(CONSTRAINTS) 'setuptools>=77'
	@$(PIP) install -q -c $(CONSTRAINTS) --no-build-isolation -e '.[dev,report]'
	@touch $@
