# Everything runs in .venv, which is made here: Python 3.11 or later and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COUNT ?= 2000
SEED ?= 1
AREA ?= realip

.PHONY: demo lab test differential lint bench faults soak mutants clean

demo: $(VENV)/demo
	@$(BIN)/kongrealip demo

# The topologies of docker-compose.yml, with the balancers' packages in the place of containers.
lab: $(VENV)/test
	@$(BIN)/python -m examples.lab

test: $(VENV)/test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Random configurations and connections, compared with the real nginx.
differential: $(VENV)/test
	$(BIN)/python -m tests.differential --count $(COUNT) --seed $(SEED)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[selfsigned]'
	@touch $@

$(VENV)/test: $(BIN)/python pyproject.toml requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --requirement requirements-dev.txt
	@touch $@ $(VENV)/demo

$(VENV)/bench: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

# Beside others that do the same, in a quarter of an hour: CPU time, wall clock and memory, each with its
# bar, written to build/benchmarks. benchmarks/README.md says how to read it.
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.suite

# Servers that are attacked, crowded, killed, renewed and ended, each figure against its bar. Takes
# three quarters of an hour; short versions are part of the tests.
faults: $(VENV)/test
	$(BIN)/python -m tests.faults.fuzz_preambles
	$(BIN)/python -m benchmarks.faults_processes
	$(BIN)/python -m benchmarks.faults_hostile
	$(BIN)/python -m benchmarks.faults_relay

# Mixed traffic for half an hour: no wrong client, no growth. The machine should have nothing else to do.
soak: $(VENV)/test
	$(BIN)/python -m benchmarks.soak

# Which changes of the code no test would notice; AREA is realip, preamble or config. Takes half an hour.
mutants: $(VENV)/test
	$(BIN)/python -m tests.mutation $(AREA)
