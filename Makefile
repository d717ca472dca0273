# One door for everything. Needs Python >= 3.11 and make; all else comes from the lock.
SHELL := /bin/bash
PYTHON ?= python3
# The machine's uv if it has one, else our own copy beside the project.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen --no-sync

.PHONY: help setup demo test check format bench faults attacks soak docs build clean
help: ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"

# The stamp is older than what it depends on as soon as the lock changes.
.venv/.synced: uv.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	$(UV) sync --frozen --quiet --extra cpu --extra local --extra image --extra faust
	@touch $@

setup: .venv/.synced ## install everything, from the lock

demo: setup ## the flagship on a real broker: train, replay, ask, tap, trace
	$(RUN) python scripts/demo.py

test: setup ## all tests, real broker included
	$(RUN) pytest -n 3 --dist loadfile $(PYTEST_ARGS)

check: setup ## format, lint, types, import rules, generated docs
	$(UV) lock --check --quiet
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) dataflow reference --check docs/reference

format: setup ## rewrite the code in house style
	$(RUN) ruff check --fix-only --quiet .
	$(RUN) ruff format .

docs: setup ## write the generated reference
	$(RUN) dataflow reference --write docs/reference

bench: setup ## all benchmarks, other servers included; results in benchmarks/results, docs/benchmarks.md; BENCH_ARGS=--quick
	$(RUN) python -m benchmarks all $(BENCH_ARGS)

faults: setup ## kill, freeze, cut and overfill a running engine for 20 minutes; FAULTS_ARGS="--quick --seed 7"
	$(RUN) python -m faults $(FAULTS_ARGS)

attacks: setup ## more than 100,000 cases of what strangers may send to a gateway; ATTACKS_ARGS="--quick --seed 7"
	$(RUN) python -m attacks $(ATTACKS_ARGS)

soak: setup ## ten minutes of steady load: memory, threads, descriptors and lag stay flat; SOAK_ARGS="--minutes 60"
	$(RUN) python -m scripts.soak $(SOAK_ARGS)

build: setup ## wheel and sdist
	$(UV) build --quiet

clean: ## remove what was made here; caches outside the tree stay
	rm -rf .venv .uv dist build .dataflow .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
