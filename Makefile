# Every target makes the virtual environment first and starts, on private ports, the servers that it lacks.
# AMQP_URL and DATABASE_URL, when set, name servers to use instead: for `make test` a PostgreSQL to create databases on.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVERS := $(BIN)/python -m dev.servers run

export LIVE
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help demo test slow faults soak mutants bench bench-limits bench-ledger check format lint imports types guard fix requirements clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements/runtime.txt requirements/dev.txt pyproject.toml
	@echo "making $(VENV) from requirements/dev.txt …"
	@$(PYTHON) -m dev.venv $(VENV) requirements/dev.txt
	@touch $@

demo: $(READY) ## jobs through a real RabbitMQ, answered, stored, priced; LIVE=1 asks OpenAI itself
	@$(SERVERS) --rabbitmq --docker -- $(BIN)/python -m examples.demo

test: $(READY) ## the tests, on real RabbitMQ, SQLite and PostgreSQL; ARGS="-k name" picks some
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/pytest -n auto --dist worksteal -m "not slow and not faults" $(ARGS)

slow: $(READY) ## the tests that take longest: limits and budgets from end to end, sums over 100,000 rows
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/pytest -m slow $(ARGS)

faults: $(READY) ## kills, cuts and corrupts real processes
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/pytest -n auto --dist worksteal -m faults $(ARGS)

soak: $(READY) ## load with a random fault every few seconds; MINUTES=10, figures as JSON lines
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),10) $(ARGS)

mutants: $(READY) ## breaks promises in copies of the code; a test must notice each; ARGS="money" picks some
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/python -m dev.mutants $(ARGS)

$(PEERS)/.ready: requirements/peers.txt
	@echo "making $(PEERS) from requirements/peers.txt …"
	@$(PYTHON) -m dev.venv $(PEERS) requirements/peers.txt
	@touch $@

bench: $(READY) $(PEERS)/.ready ## what a job costs, beside its peers; ARGS="--long" for all of it, "--figure cost" for some
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/python -m benchmarks.cpu --peers $(PEERS) $(ARGS)

bench-limits: $(READY) ## how exactly limits are kept; MINUTES=5 for long runs, ARGS="steady storm" picks some
	@$(SERVERS) --rabbitmq --postgres -- $(BIN)/python -m benchmarks.limits $(ARGS)

bench-ledger: $(READY) ## the ledger at ROWS=10000000 on both databases: reports, views, cost of a row
	@$(SERVERS) --postgres -- $(BIN)/python -m benchmarks.ledger --rows $(or $(ROWS),10000000) $(ARGS)

check: format lint imports types guard ## format, lint, imports, types, calls of the hot path

format: $(READY) ## is everything formatted?
	$(BIN)/ruff format --check

lint: $(READY) ## ruff
	$(BIN)/ruff check

imports: $(READY) ## do imports point down only?
	$(BIN)/lint-imports

types: $(READY) ## mypy
	$(BIN)/mypy

guard: $(READY) ## has a job's way through the code become longer?
	$(BIN)/python -m benchmarks.cpu.guard

fix: $(READY) ## format, and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

requirements: ## pin the newest versions that pyproject.toml and requirements/dev.in allow
	$(PYTHON) -m dev.requirements

clean: ## remove what the other targets made
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build
