# Every target sets .venv up first (scripts/setup.sh); when it is up to date, that takes no time.
# CPU=1 fetches torch from PyTorch's public CPU wheels: for Linux without a GPU.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test tiny lint format lock
export CPU
PARALLEL = --numprocesses auto --maxprocesses 8 --dist worksteal

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv from the lock (done by the targets below)
	@sh scripts/setup.sh

quickstart: setup ## post-train the tiny model and report before and after (FAMILY=umm2, ARGS="--flags")
	.venv/bin/uae quickstart $(if $(FAMILY),--family $(FAMILY)) $(ARGS)

test: setup ## run the fast tests, then the slow ones, a process for each core; with ARGS="pytest flags" in one process
ifdef ARGS
	.venv/bin/python -m pytest $(ARGS)
else
	.venv/bin/python -m pytest $(PARALLEL) -m "not slow"
	.venv/bin/python -m pytest $(PARALLEL) -m slow
endif

tiny: setup ## rebuild the shipped tiny checkpoints from nothing: hours
	.venv/bin/uae tiny build $(ARGS)

lint: setup ## check style, types and spelling
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m pyright
	.venv/bin/python -m codespell_lib

format: setup ## format and fix what can be fixed
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

lock: ## write requirements.lock anew from the ranges in pyproject.toml (Python 3.11, the oldest supported)
	rm -rf build/lock
	python3.11 -m venv build/lock
	build/lock/bin/python -m pip install "torch==2.13.0" ".[dev,track]"
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude unified-autoencoder | sed 's/+cpu$$//' > requirements.lock
